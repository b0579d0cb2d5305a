"""Takes values apart where their parts begin, so that each part can get a width of its own.

A fused projection computes queries, keys and values in one product, lays it out as [..., 3, heads, width], moves the
axis of 3 to the front and takes it apart there. One tensor has one width: values could not become narrower than
queries. So the product is split first, and each part is laid out alone. Outputs stay the same, bit for bit.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from planish.compiler.program import arguments
from planish.compiler.shapes import fake_like, tensor_of

aten = torch.ops.aten


class _Step(NamedTuple):
    """An op that only lays values out, and the axis of its result that is taken apart."""

    node: fx.Node
    axis: int


class _Segment(NamedTuple):
    """Axes ``first`` to ``last`` of the result of a view are the axis ``source`` of its argument."""

    source: int
    first: int
    last: int


def split_early(graph: fx.Graph) -> None:
    """Rewrites every value that is only taken apart, if a view made the axis along which it is of a longer one."""
    made = _Made()
    for value in [*graph.nodes]:
        axes = {_axis_of_taker(user, value) for user in value.users}
        axis = axes.pop() if len(axes) == 1 else None
        count = 1 if axis is None else tensor_of(value).shape[axis]
        if axis is None or not isinstance(count, int) or count == 1:
            continue
        taken, steps = _taken(value, axis), _from_view(_Step(value, axis))
        if steps is not None and len(taken) == count:
            _split(graph, steps, taken, made)


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def _axis_of_taker(user: fx.Node, value: fx.Node) -> int | None:
    """The axis along which ``user`` takes ``value`` apart; None if it does something else."""
    selects = _packet(user) is aten.select and isinstance(arguments(user)["index"], int)
    unbinds = _packet(user) is aten.unbind and all(item.target is operator.getitem for item in user.users)
    return int(arguments(user)["dim"]) % tensor_of(value).ndim if selects or unbinds else None


def _taken(value: fx.Node, axis: int) -> dict[int, list[fx.Node]]:
    """The nodes that are parts of ``value``, by the index along ``axis``."""
    taken: dict[int, list[fx.Node]] = {}
    for user in value.users:
        if _packet(user) is aten.select:
            taken.setdefault(arguments(user)["index"] % tensor_of(value).shape[axis], []).append(user)
        else:
            for item in user.users:
                taken.setdefault(int(item.args[1]), []).append(item)  # type: ignore[arg-type]
    return taken


# ---------------------------------------------------------------------- where the axis was made


def _from_view(last: _Step) -> list[_Step] | None:
    """The steps from the view that made the axis to ``last``; None if it was made in another way."""
    steps = [last]
    while True:
        node, axis = steps[0]
        segment = _segment(node, axis) if _packet(node) in _VIEWS else None
        if segment is not None and segment.last > axis:
            return steps
        before = _axis_before(node, axis) if segment is None else segment.source if segment.first == axis else None
        if before is None or len(node.all_input_nodes[0].users) > 1:
            return None
        steps.insert(0, _Step(node.all_input_nodes[0], before))


def _axis_before(node: fx.Node, axis: int) -> int | None:
    """Which axis of its argument the ``axis`` of a layout op is; None for a new one, and for other ops."""
    if _packet(node) not in _BEFORE:
        return None
    return _BEFORE[_packet(node)](arguments(node), tensor_of(node.all_input_nodes[0]).ndim, axis)


def _before_transpose(given: dict[str, Any], rank: int, axis: int) -> int:
    first, second = (int(dim) % rank for dim in [*given.values()][1:3])
    return second if axis == first else first if axis == second else axis


def _before_unsqueeze(given: dict[str, Any], rank: int, axis: int) -> int | None:
    new = given["dim"] % (rank + 1)
    return None if axis == new else axis - (axis > new)


_VIEWS = (aten.view, aten.reshape, aten._unsafe_view, aten.unflatten)
_BEFORE: dict[Any, Callable[[dict[str, Any], int, int], int | None]] = {
    **dict.fromkeys((aten.clone, aten.contiguous), lambda given, rank, axis: axis),
    aten.permute: lambda given, rank, axis: given["dims"][axis] % rank,
    aten.transpose: _before_transpose,
    aten.unsqueeze: _before_unsqueeze,
    aten.squeeze: lambda given, rank, axis: [left for left in range(rank) if left not in given["dim"]][axis],
}


def _segment(view: fx.Node, axis: int) -> _Segment | None:
    """What ``axis`` of the result is a part of; None if parts of several axes meet in it, or sizes are symbolic."""
    source, result = (_inner(tensor_of(node).shape) for node in (view.all_input_nodes[0], view))
    for index in reversed(range(len(source) - 1)):
        whole, inner = source[index : index + 2]
        firsts = [at for at in range(axis + 1) if result[at] == whole]
        lasts = [at for at in range(axis, len(result) - 1) if result[at + 1] == inner]
        if whole is None or (whole != inner and firsts and lasts):
            return None if whole is None else _Segment(index, firsts[-1], lasts[0])
    return None


def _inner(shape: Sequence[Any]) -> list[int | None]:
    """How many values lie in one index of each axis, and behind the last; None from a symbolic size on."""
    products: list[int | None] = [1]
    for size in reversed(shape):
        last = products[0]
        products.insert(0, None if last is None or not isinstance(size, int) else last * size)
    return products


# ---------------------------------------------------------------------- the rewrite


class _Made:
    """Fake tensors: each takes 0.1 ms where sizes are symbolic, and the layers of a model are alike."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, like: Tensor, first: int, last: int, size: int) -> Tensor:
        """As ``like``, with one axis of this ``size`` for axes ``first`` to ``last``."""
        shape = (*like.shape[:first], size, *like.shape[last + 1 :])
        key = like.dtype, *(size.node.expr if isinstance(size, torch.SymInt) else size for size in shape)
        if key not in self._known:
            self._known[key] = fake_like(like, shape)
        return self._known[key]


def _split(graph: fx.Graph, steps: Sequence[_Step], taken: Mapping[int, Sequence[fx.Node]], made: _Made) -> None:
    (view, axis), (value, _) = steps[0], steps[-1]
    segment = _segment(view, axis)
    assert segment is not None
    with graph.inserting_before(value):
        source, at = view.all_input_nodes[0], segment.source
        if segment.first < axis:  # heads x 3 x width: the heads stay outside
            size = math.prod(tensor_of(view).shape[axis : segment.last + 1])
            source, at = _viewed(graph, view, source, axis, [size], segment.last), axis
            source.meta["val"] = made(tensor_of(view), axis, segment.last, size)
        part = made(tensor_of(source), at, at, tensor_of(source).shape[at] // len(taken))
        split = graph.call_function(aten.split_with_sizes.default, (source, [part.shape[at]] * len(taken), at))
        split.meta = {**view.meta, "val": [part] * len(taken)}
        for index, nodes in sorted(taken.items()):
            found = graph.call_function(operator.getitem, (split, index))
            found.meta = {**view.meta, "val": part}
            found = _laid_out(graph, steps, found, made)
            found.meta = {**nodes[0].meta}
            for node in nodes:
                node.replace_all_uses_with(found)
                graph.erase_node(node)
    for node in (*value.users, *(step.node for step in reversed(steps))):
        graph.erase_node(node)


def _laid_out(graph: fx.Graph, steps: Sequence[_Step], part: fx.Node, made: _Made) -> fx.Node:
    """What the ``steps`` make of one part: its axis has size 1 until it vanishes."""
    for node, axis in steps:
        if _packet(node) in _VIEWS:
            laid_out = _viewed(graph, node, part, axis, [1], axis)
        else:
            laid_out = graph.node_copy(node, {node.all_input_nodes[0]: part}.__getitem__)
        laid_out.meta["val"] = made(tensor_of(node), axis, axis, 1)
        part = laid_out
    return graph.call_function(aten.squeeze.dims, (part, [steps[-1].axis]))


def _viewed(graph: fx.Graph, view: fx.Node, source: fx.Node, first: int, sizes: list[int], last: int) -> fx.Node:
    """A copy of ``view`` on ``source`` whose axes ``first`` to ``last`` have these ``sizes`` instead."""
    given = arguments(view)
    if _packet(view) is aten.unflatten:
        outer = given["dim"] % tensor_of(view.all_input_nodes[0]).ndim
        listed = [*given["sizes"]]
        listed[first - outer : last + 1 - outer] = sizes
        found = graph.call_function(aten.unflatten.int, (source, outer, listed))
    else:
        listed = [*(given["shape"] if "shape" in given else given["size"])]
        listed[first : last + 1] = sizes
        found = graph.call_function(aten.reshape.default, (source, listed))
    found.meta = {**view.meta}
    return found
