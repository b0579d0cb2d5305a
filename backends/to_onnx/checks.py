"""What a Program has to fulfil for ONNX Runtime, and what it will make slower than expected."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from planish.compiler.contracts import Check
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program

aten = torch.ops.aten


def checks_for(profile: HardwareProfile) -> tuple[Check, ...]:
    from planish.backends.to_onnx.graph_rules import checks_of
    from planish.backends.to_onnx.lowered import lowered_for
    from planish.backends.to_onnx.providers import rules_for

    own = (NO_COMPLEX, NO_RULE, NO_STATE)
    rules = rules_for(profile)
    return (*own, *checks_of(rules, lambda program: lowered_for(program, profile)[0])) if rules else own


def _without_rule(program: Program) -> Iterator[fx.Node]:
    from planish.backends.to_onnx.exporter import without_complex
    from planish.backends.to_onnx.lower import unsupported

    yield from unsupported(without_complex(program))


def _complex(program: Program) -> Iterator[fx.Node]:
    from planish.backends.to_onnx.exporter import without_complex

    if without_complex(program) is not program:
        return
    for node in program.calls():
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype.is_complex:
            yield node


def _writes_state(program: Program) -> Iterator[fx.Node]:
    for node in program.calls():
        if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
            continue
        written = node.args[0] if node.args else None
        while isinstance(written, fx.Node) and written.op == "call_function" and written.args:
            written = written.args[0]  # through views, to what is written
        if isinstance(written, fx.Node) and written.op == "get_attr":
            yield node


NO_COMPLEX = Check(
    "no-complex-numbers",
    "Compute with real and imaginary parts apart: ONNX has no complex tensors.",
    _complex,
    source="https://onnx.ai/onnx/repo-docs/IR.html#tensor-element-types",
)
NO_RULE = Check(
    "own-rules",
    "No rule of planish lowers this operator: PyTorch decomposes it, or its exporter lowers the whole model.",
    _without_rule,
    severity="warning",
)
NO_STATE = Check(
    "no-state",
    "The model writes into its own buffers: the artifact keeps no state from one call to the next.",
    _writes_state,
    severity="warning",
)
