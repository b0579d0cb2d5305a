"""Writes in place become results: what a Program computes does not depend on who shares memory with whom."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from planish.compiler.program import Program

aten = torch.ops.aten


def use_functional_ops(program: Program) -> None:
    """Turn every write in place into its functional form where that means the same.

    1. A write that reaches an input or a buffer stays: it outlives the call.
    2. ``op_(x)`` becomes ``op(x)``; what reads ``x`` afterwards reads the result.
    3. ``op_(x[1, 2:])`` becomes ``op(x[1, 2:])``, scattered into ``x``; what reads ``x`` afterwards reads that.
    4. It stays where something else than this one ``x`` shows the change afterwards: other views, made earlier.
    """
    for node in [*program.calls()]:
        twin = _functional_twin(node)
        if twin is None:
            continue
        order = {other: index for index, other in enumerate(program.graph.nodes)}
        affected = _affected(node, order)
        if affected is not None:
            _rewrite(program.graph, node, twin, order, *affected)


def _functional_twin(node: fx.Node) -> torch._ops.OpOverload | None:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    twin = getattr(packet, target._overloadname, None) if packet is not None else None
    same = twin is not None and len(twin._schema.arguments) == len(target._schema.arguments)
    return twin if same and isinstance(node.args[0], fx.Node) else None


# These views have an operator that puts values in their place, with the same arguments.
_SCATTERS = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}


def _affected(node: fx.Node, order: dict[fx.Node, int]) -> tuple[fx.Node, list[fx.Node]] | None:
    """What shows afterwards that ``node`` has written, and the views that lead from what is written to it.

    None where the write has to stay.
    """
    written = node.args[0]
    assert isinstance(written, fx.Node)
    earlier = [alias for alias in _aliases(written, node) if order[alias] < order[node]]
    if any(alias.op in ("get_attr", "placeholder") for alias in earlier):
        return None
    showing = [alias for alias in earlier if any(order[user] > order[node] for user in alias.users)]
    if len(showing) > 1:
        return None
    base = showing[0] if showing else written
    views: list[fx.Node] = []
    current = written
    while current is not base:
        if current.target not in _SCATTERS or current.kwargs:
            return None
        views.append(current)
        current = current.args[0]  # type: ignore[assignment]
    return base, views


def _rewrite(
    graph: fx.Graph, node: fx.Node, twin: Any, order: dict[fx.Node, int], base: fx.Node, views: list[fx.Node]
) -> None:
    later = [user for user in base.users if order[user] > order[node]]
    readers = [*node.users]
    node.target = twin
    value = result = node

    def call(target: Any, *arguments: Any) -> fx.Node:
        made = graph.call_function(target, arguments)
        made.meta = {key: kept for key, kept in node.meta.items() if key != "val"}
        return made

    with graph.inserting_before(node.next):
        for view in views:
            value = call(_SCATTERS[view.target], view.args[0], value, *view.args[1:])  # type: ignore[index]
        result = value
        for view in reversed(views) if readers else ():
            result = call(view.target, result, *view.args[1:])
    for user in later:
        user.replace_input_with(base, value)
    for user in readers:
        user.replace_input_with(node, result)
    if views and _copies_whole(node):
        source: Any = node.args[1]
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    for view in views:
        if not view.users:
            graph.erase_node(view)


def _copies_whole(node: fx.Node) -> bool:
    """Whether ``node`` gives its source as it is: no broadcast, no cast."""
    if node.target is not aten.copy.default:
        return False
    target, source = (arg.meta.get("val") if isinstance(arg, fx.Node) else None for arg in node.args[:2])
    if target is None or source is None or target.dtype is not source.dtype:
        return False
    return [str(size) for size in target.shape] == [str(size) for size in source.shape]


# ---------------------------------------------------------------------- who shares memory


def _aliases(node: fx.Node, but: fx.Node) -> set[fx.Node]:
    """``node``, all it is a view of, and all views of those, other than through ``but``."""
    found, waiting = set(), [node]
    while waiting:
        current = waiting.pop()
        if current in found or current is but:
            continue
        found.add(current)
        if _is_view(current) and isinstance(current.args[0], fx.Node):
            waiting.append(current.args[0])
        waiting.extend(user for user in current.users if _is_view(user) and user.args[0] is current)
    return found


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:  # split, chunk and unbind hand out views by getitem
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target.overloadpacket in _MAYBE_VIEWS:
        return True
    return any(result.alias_info is not None for result in node.target._schema.returns)


# These return their input or a copy of it, and their schemas do not say so.
_MAYBE_VIEWS = (
    aten.reshape, aten.reshape_as, aten.contiguous, aten.to, aten.type_as, aten.flatten, aten.dropout,
    aten.feature_dropout, aten.expand_as, aten.unflatten,
)  # fmt: skip
