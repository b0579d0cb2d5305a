"""Tensors with many zeros, stored as the other values in order, and one bit for each place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from planish.compiler.errors import UserError

FROM_BYTES = 4096
"""Smaller tensors are not worth it."""
BELOW = 0.95
"""A tensor is packed if that takes less than this share of its bytes."""
Shapes = dict[str, list[int]]


def packed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Shapes]:
    """What is stored for ``tensors``, and the shapes of those that were packed. Every zero comes back as +0."""
    stored: dict[str, Tensor] = {}
    shapes: Shapes = {}
    for name, tensor in tensors.items():
        if _pays(tensor):
            filled = tensor.detach() != 0
            stored[name] = tensor.detach()[filled]
            stored[_bits(name)] = torch.from_numpy(np.packbits(filled.cpu().numpy()))
            shapes[name] = [*tensor.shape]
        else:
            stored[name] = tensor
    return stored, shapes


def unpacked(stored: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The inverse of ``packed``. Raises UserError if values, bits and shape of a tensor do not fit together."""
    tensors = dict(stored)
    for name, shape in shapes.items():
        tensors[name] = _whole(tensors[name], tensors.pop(_bits(name)), shape)
    return tensors


def stored_bytes(tensor: Tensor) -> int:
    """What the values of ``tensor`` take in an archive."""
    return _packed_bytes(tensor) if _pays(tensor) else tensor.nbytes


def _pays(tensor: Tensor) -> bool:
    if tensor.nbytes < FROM_BYTES or (tensor.is_floating_point() and tensor.itemsize < 2):  # no != for 8-bit floats
        return False
    return _packed_bytes(tensor) < BELOW * tensor.nbytes


def _packed_bytes(tensor: Tensor) -> int:
    return int((tensor != 0).sum()) * tensor.itemsize + -(-tensor.numel() // 8)


def _bits(name: str) -> str:
    """Where the bits of a packed tensor are: names of tensors have no slash."""
    return f"bits/{name}"


def _whole(values: Tensor, bits: Tensor, shape: Sequence[int]) -> Tensor:
    count = math.prod(shape)
    if bits.dtype is not torch.uint8 or bits.shape != (-(-count // 8),):
        raise UserError("the bits of a packed tensor do not fit its shape")
    filled = torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool))
    if values.shape != (int(filled.sum()),):
        raise UserError("the values of a packed tensor do not fit its bits")
    whole = torch.zeros(count, dtype=values.dtype)
    whole[filled] = values
    return whole.reshape([*shape])
