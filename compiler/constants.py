"""What a Program computes from its own tensors alone: known before any input is."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from planish.compiler.program import Program


class Constants:
    """The nodes that depend on no input, nor on a node that ``varies``; the tensors of the Program among them."""

    def __init__(self, program: Program, varies: Callable[[fx.Node], bool] = lambda node: False) -> None:
        self._program = program
        self._nodes: set[fx.Node] = set()
        self._values: dict[fx.Node, Any] = {}
        for node in program.graph.nodes:
            computed = node.op == "call_function" and is_repeatable(node)
            known = program.tensor(node) is not None or (computed and self._nodes.issuperset(node.all_input_nodes))
            if known and not varies(node):
                self._nodes.add(node)

    def __contains__(self, node: fx.Node) -> bool:
        return node in self._nodes

    def value(self, node: fx.Node) -> Any:
        """What ``node``, one of these, is; computed when it is first asked for."""
        with torch.no_grad():
            for each in sorted(self._without_value(node)):
                self._values[each] = self._computed(each)
        return self._values[node]

    def _without_value(self, node: fx.Node) -> set[fx.Node]:
        """``node`` and all that it is computed from."""
        found, waiting = set[fx.Node](), [node]
        while waiting:
            each = waiting.pop()
            if each not in found and each not in self._values:
                found.add(each)
                waiting += each.all_input_nodes
        return found

    def _computed(self, node: fx.Node) -> Any:
        tensor = self._program.tensor(node)
        if tensor is not None:
            return tensor
        target: Any = node.target
        both: Any = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
        return target(*both[0], **both[1])


def is_repeatable(node: fx.Node) -> bool:
    """Whether the operator of ``node`` gives the same for the same inputs each time, and changes none of them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    return torch.Tag.nondeterministic_seeded not in node.target.tags and not node.target._schema.is_mutable
