"""What a Program has to fulfil for ONNX Runtime, and what it will make slower than expected."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from planish.compiler.contracts import Check
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program
from planish.compiler.shapes import ensure_shapes

aten = torch.ops.aten


def checks_for(profile: HardwareProfile) -> tuple[Check, ...]:
    return (NO_COMPLEX, NO_RULE)


def _without_rule(program: Program) -> Iterator[fx.Node]:
    from planish.backends.to_onnx.lower import unsupported

    yield from unsupported(program)


def _complex(program: Program) -> Iterator[fx.Node]:
    ensure_shapes(program)
    for node in program.calls():
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype.is_complex:
            yield node


NO_COMPLEX = Check(
    "no-complex-numbers",
    "Compute with real and imaginary parts apart: ONNX has no complex tensors.",
    _complex,
    source="https://onnx.ai/onnx/repo-docs/IR.html#tensor-element-types",
)
NO_RULE = Check(
    "own-rules",
    "No rule of planish lowers this operator: torch.onnx.export is used for the whole model, with its own graph form.",
    _without_rule,
    severity="warning",
)
