"""Whatever traces shall lower: our rules, then our rules on PyTorch's decompositions."""

from __future__ import annotations

from dataclasses import dataclass

from planish.backends.to_tflite.emitter import Unsupported
from planish.backends.to_tflite.graph import PLAIN, Form, Graph
from planish.backends.to_tflite.lower import RULES, prepared, to_tflite, unsupported
from planish.compiler.complex_numbers import real_numbers
from planish.compiler.decompose import decomposed
from planish.compiler.errors import LoweringError
from planish.compiler.program import Program, op_name

_ROUNDS = 5
"""Operators, one a round, whose rule does not know the form at hand and that are decomposed instead."""


@dataclass(frozen=True)
class Conversion:
    graph: Graph
    program: Program
    """What the graph was written from."""
    note: str


def convert(program: Program, form: Form = PLAIN) -> Conversion:
    """The TFLite graph of ``program``, and a sentence for the Report: which way it was lowered.

    Raises LoweringError, with the node and the module that have no rule, if neither way succeeds.
    """
    program = prepared(real_numbers(program))
    try:
        return Conversion(to_tflite(program, form), program, "Every operator was lowered by its rule.")
    except Unsupported as failure:
        first = failure
    return _by_decomposition(program, form, first)


def _by_decomposition(program: Program, form: Form, first: Unsupported) -> Conversion:
    kept = set(RULES)
    operators = {op_name(node) for node in unsupported(program)}
    current, last = program, first
    for _ in range(_ROUNDS):
        node = next((node for node in current.graph.nodes if node.name == last.node), None)
        if node is None or (current is not program and node.target not in kept):
            break  # decomposed as far as it goes, and here it is again
        operators.add(op_name(node))
        kept.discard(node.target)
        try:
            current = prepared(decomposed(program, kept))
        except Exception as error:  # whatever PyTorch's export raises
            raise first from error
        try:
            graph = to_tflite(current, form)
        except Unsupported as again:
            last = again
            continue
        told = ", ".join(sorted(operators))
        note = f"PyTorch decomposed {told} ({first.args[0]}), then every operator was lowered by its rule."
        return Conversion(graph, current, note)
    told = first.args[0] if last is first else f"{first.args[0]} (PyTorch makes of it: {last})"
    raise LoweringError(told, component="tflite", node=first.node, module=first.module) from last
