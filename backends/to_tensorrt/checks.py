"""The rules of ``rules.py`` as Checks of a Program: it is lowered as it stands, and each node is traced back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir
from torch import fx

from planish.backends.to_onnx.checks import NO_COMPLEX, NO_RULE, NO_STATE
from planish.backends.to_onnx.exporter import lower_any
from planish.backends.to_tensorrt.rules import Rule, rules_for
from planish.backends.to_tensorrt.versions import oldest_version, suit
from planish.compiler.contracts import Check
from planish.compiler.errors import LoweringError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program

NEWEST_OPSET = 20


def checks_for(profile: HardwareProfile) -> tuple[Check, ...]:
    lowered = _Lowered(profile)
    rules = rules_for(oldest_version(profile), frozenset(profile.support.dtypes))
    return (
        NO_COMPLEX,
        NO_RULE,
        NO_STATE,
        Check("lowers-to-onnx", "Replace an operator that cannot be written as ONNX.", lowered.obstacles),
        *(Check(rule.name, rule.sentence, lowered.offenders(rule), rule.severity, rule.source) for rule in rules),
    )


def opset_for(profile: HardwareProfile) -> int:
    return min(NEWEST_OPSET, profile.runtime.opset or NEWEST_OPSET)


def origin(name: str | None, program: Program) -> fx.Node | None:
    """The node of ``program`` that an ONNX node of that name was lowered from."""
    stem = (name or "").split("/")[-1].split(".")[0]
    return next((node for node in program.graph.nodes if node.name == stem), None)


class _Lowered:
    """The ONNX model of the Program that was asked for last: all Checks look at the same one."""

    def __init__(self, profile: HardwareProfile) -> None:
        self.profile = profile
        self._program: Program | None = None
        self._model: ir.Model | None = None
        self._failure: LoweringError | None = None

    def obstacles(self, program: Program) -> Iterator[fx.Node]:
        self._lower(program)
        if self._failure is not None:
            yield origin(self._failure.node, program) or program.output

    def offenders(self, rule: Rule) -> Callable[[Program], Iterator[fx.Node]]:
        def of(program: Program) -> Iterator[fx.Node]:
            self._lower(program)
            if self._model is not None:
                for node in rule.offenders(self._model.graph):
                    yield origin(node.name, program) or program.output

        return of

    def _lower(self, program: Program) -> None:
        if program is self._program:
            return
        self._program, self._model, self._failure = program, None, None
        try:
            model, _ = lower_any(program, opset_for(self.profile))
            self._model = suit(model, oldest_version(self.profile))
        except LoweringError as failure:
            self._failure = failure
