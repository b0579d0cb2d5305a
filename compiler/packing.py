"""Tensors with many zeros, stored as the other values in order, and one bit for each place, compressed.

Values hardly compress; the bits do, nearly to their entropy: 0.47 bits a place where one of ten values is left, 0.65
where two of four are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from planish.compiler.errors import UserError

FROM_BYTES = 4096
"""Smaller tensors are not worth it."""
BELOW = 0.95
"""A tensor is packed if that takes less than this share of its bytes."""
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)
"""The first for zeros that lie together, the second for scattered ones."""
Shapes = dict[str, list[int]]


def packed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Shapes]:
    """What is stored for ``tensors``, and the shapes of those that were packed. Every zero comes back as +0."""
    stored: dict[str, Tensor] = {}
    shapes: Shapes = {}
    for name, tensor in tensors.items():
        places = _places(tensor)
        stored[name] = tensor if places is None else tensor.detach()[tensor.detach() != 0]
        if places is not None:
            stored[_bits(name)] = places
            shapes[name] = [*tensor.shape]
    return stored, shapes


def unpacked(stored: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The inverse of ``packed``. Raises UserError if values, bits and shape of a tensor do not fit together."""
    tensors = dict(stored)
    for name, shape in shapes.items():
        tensors[name] = _whole(tensors[name], tensors.pop(_bits(name)), shape)
    return tensors


def stored_bytes(tensor: Tensor) -> int:
    """What the values of ``tensor`` take in an archive."""
    places = _places(tensor)
    return tensor.nbytes if places is None else int((tensor != 0).sum()) * tensor.itemsize + places.nbytes


def _places(tensor: Tensor) -> Tensor | None:
    """The bits that say where ``tensor`` is not zero, as they are stored; None where packing it does not pay."""
    if tensor.nbytes < FROM_BYTES or (tensor.is_floating_point() and tensor.itemsize < 2):  # no != for 8-bit floats
        return None
    filled = tensor.detach() != 0
    left = BELOW * tensor.nbytes - int(filled.sum()) * tensor.itemsize
    if left <= 0:
        return None
    places = _deflated(filled)
    return places if places.nbytes < left else None


def _deflated(filled: Tensor) -> Tensor:
    """uint8 [bytes]: a bit for each value; as it is where compressing gains nothing."""
    bits = np.packbits(filled.cpu().numpy())
    short = min((_compressed(bits.tobytes(), strategy) for strategy in _STRATEGIES), key=len)
    return torch.from_numpy(bits if len(short) >= len(bits) else np.frombuffer(short, np.uint8).copy())


def _compressed(plain: bytes, strategy: int) -> bytes:
    compressor = zlib.compressobj(strategy=strategy)
    return compressor.compress(plain) + compressor.flush()


def _inflated(stored: Tensor, count: int) -> Tensor:
    """The inverse, bool [count]. Never takes more memory than ``count`` asks for."""
    size = -(-count // 8)
    if stored.dtype is torch.uint8 and stored.ndim == 1 and 0 < len(stored) < size:
        try:
            inflated = zlib.decompressobj().decompress(stored.numpy().tobytes(), size + 1)
        except zlib.error as failure:
            raise UserError(f"the bits of a packed tensor cannot be read ({failure})") from failure
        stored = torch.from_numpy(np.frombuffer(inflated, np.uint8).copy())
    if stored.dtype is not torch.uint8 or stored.shape != (size,):
        raise UserError("the bits of a packed tensor do not fit its shape")
    return torch.from_numpy(np.unpackbits(stored.numpy(), count=count).astype(bool))


def _bits(name: str) -> str:
    """Where the bits of a packed tensor are: names of tensors have no slash."""
    return f"bits/{name}"


def _whole(values: Tensor, bits: Tensor, shape: Sequence[int]) -> Tensor:
    count = math.prod(shape)
    filled = _inflated(bits, count)
    if values.shape != (int(filled.sum()),):
        raise UserError("the values of a packed tensor do not fit its bits")
    whole = torch.zeros(count, dtype=values.dtype)
    whole[filled] = values
    return whole.reshape([*shape])
