"""Rules over ONNX graphs, asked of a Program before it is lowered for good, and of files that anyone may have made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
from torch import fx

from planish.compiler.contracts import Check, FileFinding
from planish.compiler.errors import LoweringError, UserError
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.report import Decision

Offenders = Callable[[ir.Graph], Iterator[ir.Node]]


@dataclass(frozen=True)
class Rule:
    """One requirement on an ONNX graph; ``offenders`` yields the nodes that break it."""

    name: str
    sentence: str
    offenders: Offenders
    severity: Literal["error", "warning"] = "error"
    source: str = ""


def nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """All nodes, those in the branches of If and the bodies of Loop included."""
    return iter(ir.traversal.RecursiveGraphIterator(graph))


def origin(name: str | None, program: Program) -> fx.Node | None:
    """The node of ``program`` that an ONNX node of that name was lowered from."""
    stem = (name or "").split("/")[-1].split(".")[0]
    return next((node for node in program.graph.nodes if node.name == stem), None)


def in_float(node: ir.Node | onnx.NodeProto, program: Program, reason: str) -> Decision:
    """That ``node`` was meant for INT8 and runs in float."""
    found = origin(node.name, program)
    module = source_module(found) if found is not None else ""
    op = op_name(found) if found is not None else node.op_type
    return Decision(module=module, op=op, node=node.name or "", outcome="float", reason=reason)


def checks_of(rules: Iterable[Rule], lower: Callable[[Program], ir.Model]) -> tuple[Check, ...]:
    """``rules`` as Checks of a Program: it is lowered as it stands, and each node is traced back."""
    lowered = _Lowered(lower)
    return (
        Check("lowers-to-onnx", "Replace an operator that cannot be written as ONNX.", lowered.obstacles),
        *(Check(rule.name, rule.sentence, lowered.offenders(rule), rule.severity, rule.source) for rule in rules),
    )


class _Lowered:
    """The ONNX model of the Program that was asked for last: all Checks look at the same one."""

    def __init__(self, lower: Callable[[Program], ir.Model]) -> None:
        self._to_onnx = lower
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
            self._model = self._to_onnx(program)
        except LoweringError as failure:
            self._failure = failure


def findings_in(file: Path, rules: Iterable[Rule]) -> list[FileFinding]:
    """What breaks ``rules`` in an ONNX file. Raises UserError if it cannot be read."""
    graph = _read(file).graph
    return [
        FileFinding(
            rule, node.op_type, node.metadata_props.get("planish.module") or node.name or "a node without a name"
        )
        for rule in rules
        for node in rule.offenders(graph)
    ]


def _read(file: Path) -> ir.Model:
    """With shapes inferred: rules look at ranks. Weights that lie beside the file are read where a rule asks."""
    if not file.is_file():
        raise UserError(f"Name an ONNX file that exists: there is no {file}.")
    try:
        proto = onnx.load(file, load_external_data=False)
        model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    except Exception as failure:  # protobuf's DecodeError, and what onnx raises of a file that is no model
        raise UserError(f"Save {file} again: it is no ONNX model that can be read ({failure}).") from failure
    ir.external_data.set_base_dir(model.graph, file.parent)
    return model
