"""What goes into a file and comes out of it: the Program's tensors as the file has them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, fx

from planish.backends.to_tflite.dtypes import in_file
from planish.backends.to_tflite.graph import Graph
from planish.backends.to_tflite.lower import output_leaves
from planish.backends.to_tflite.values import Quantization, Value
from planish.compiler.errors import UserError
from planish.compiler.program import Program


class End(BaseModel):
    """One input or output of the file."""

    model_config = ConfigDict(extra="forbid")
    name: str
    shape: list[int]
    """As it lies in the file."""
    order: list[int]
    """Place in the file -> dimension of the Program: [0, 2, 3, 1] is channels last."""
    dtype: str
    """In the Program."""
    scale: float | None = None
    """Of INT8 ends: real = scale * (integer - zero)."""
    zero: int = 0


class Ends(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inputs: list[End]
    outputs: list[End]


def ends_of(graph: Graph, program: Program) -> Ends:
    placeholders = [node for node in program.placeholders if isinstance(node.meta.get("val"), Tensor)]
    outputs = [leaf for leaf in output_leaves(program) if isinstance(leaf, fx.Node)]
    return Ends(
        inputs=[_end(value, node) for value, node in zip(graph.inputs, placeholders, strict=True)],
        outputs=[_end(value, node) for value, node in zip(graph.outputs, outputs, strict=True)],
    )


def _end(value: Value, node: fx.Node) -> End:
    real = node.meta["val"]
    dtype = str(real.dtype if isinstance(real, Tensor) else torch.int64).removeprefix("torch.")
    own = value.quantization or Quantization((), ())
    return End(
        name=value.stored.name, shape=[*value.shape], order=[*value.order], dtype=dtype,
        scale=own.scales[0] if own.scales else None, zero=own.zeros[0] if own.zeros else 0,
    )  # fmt: skip


def to_file(leaves: Sequence[Any], ends: Sequence[End]) -> list[np.ndarray]:
    """The tensors among ``leaves`` as the file takes them. Raises UserError for whole numbers beyond INT32."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [_entering(tensor.detach().cpu(), end) for tensor, end in zip(tensors, ends, strict=True)]


def _entering(tensor: Tensor, end: End) -> np.ndarray:
    if tensor.dtype is torch.int64 and tensor.numel() and int(tensor.abs().max()) >= 2**31:
        raise UserError(f"Give {end.name} numbers below 2^31: the file holds INT32.")
    tensor = tensor.permute(end.order)
    if end.scale is not None:
        integers = torch.round(tensor / end.scale) + end.zero
        return integers.clamp(-128, 127).to(torch.int8).contiguous().numpy()
    return in_file(tensor).contiguous().numpy()


def from_file(arrays: Sequence[np.ndarray], ends: Sequence[End]) -> list[Tensor]:
    """What the file gives, as the Program's tensors."""
    return [_leaving(torch.from_numpy(array), end) for array, end in zip(arrays, ends, strict=True)]


def _leaving(tensor: Tensor, end: End) -> Tensor:
    if end.scale is not None:
        tensor = (tensor.float() - end.zero) * end.scale
    back = [end.order.index(dim) for dim in range(len(end.order))]
    return tensor.permute(back).to(getattr(torch, end.dtype)).contiguous()
