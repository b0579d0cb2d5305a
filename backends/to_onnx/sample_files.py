"""The samples beside an ONNX file: inputs of one call, and what ONNX Runtime makes of them, Q/DQ in float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from planish.backends.to_onnx.reference import Reference
from planish.compiler.build_folder import save_tensor


def inputs_for(model: ir.Model, inputs: Sequence[Tensor] | None) -> list[Tensor]:
    """``inputs``, of one row where the batch is dynamic: what latency is asked for. Drawn where none are given."""
    if inputs is None:
        return _drawn(model)
    first = [value.shape is not None and len(value.shape) > 0 and value.shape[0] for value in model.graph.inputs]
    return [
        tensor.detach()[:1] if isinstance(size, ir.SymbolicDim) else tensor.detach()
        for tensor, size in zip(inputs, first, strict=True)
    ]


def _drawn(model: ir.Model) -> list[Tensor]:
    """Random inputs, dynamic sizes 1; zeros where they are whole numbers."""
    drawn = []
    for value in model.graph.inputs:
        sizes = [size if isinstance(size, int) else 1 for size in value.shape or ()]
        dtype = getattr(torch, _TORCH.get(str(value.dtype), str(value.dtype).lower()))
        drawn.append(torch.randn(sizes, dtype=dtype) if dtype.is_floating_point else torch.zeros(sizes, dtype=dtype))
    return drawn


_TORCH = {"FLOAT": "float32", "DOUBLE": "float64"}
"""ONNX's name of a dtype -> torch's, where they differ."""


def save_outputs(folder: Path, model: str, inputs: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """Write what is expected of ``model``; yields what build.json says of each output."""
    reference = Reference(folder / model)
    for index, (name, tensor) in enumerate(zip(reference.output_names, reference(inputs), strict=True)):
        yield save_tensor(folder, f"expected_output_{index}.bin", name, tensor)
