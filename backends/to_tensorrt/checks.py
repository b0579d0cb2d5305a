"""The rules of ``rules.py`` as Checks of a Program."""

from __future__ import annotations

import onnx_ir as ir

from planish.backends.to_onnx.checks import NO_COMPLEX, NO_RULE, NO_STATE
from planish.backends.to_onnx.exporter import lower_any
from planish.backends.to_onnx.graph_rules import checks_of
from planish.backends.to_tensorrt.rules import rules_of
from planish.backends.to_tensorrt.versions import oldest_version, suit
from planish.compiler.contracts import Check
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program

NEWEST_OPSET = 20


def checks_for(profile: HardwareProfile) -> tuple[Check, ...]:
    def lowered(program: Program) -> ir.Model:
        model, _ = lower_any(program, opset_for(profile))
        return suit(model, oldest_version(profile))

    return (NO_COMPLEX, NO_RULE, NO_STATE, *checks_of(rules_of(profile), lowered))


def opset_for(profile: HardwareProfile) -> int:
    return min(NEWEST_OPSET, profile.runtime.opset or NEWEST_OPSET)
