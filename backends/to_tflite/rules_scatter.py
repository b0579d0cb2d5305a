"""Operators that put values at positions, or fill a tensor with others."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_arithmetic import operands, select, truth
from planish.backends.to_tflite.rules_conv import shape_of
from planish.backends.to_tflite.rules_index import all_places, positions, tuples
from planish.backends.to_tflite.rules_shape import cat, cut_out, take
from planish.backends.to_tflite.values import Value, plain
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def scattered(e: Emitter, places: Value, updates: Any, sizes: Sequence[int]) -> Value:
    """Zeros with ``updates`` added at ``places``."""
    source = e.in_order(updates)
    return e.op(
        "SCATTER_ND",
        places,
        source,
        e.numbers([*sizes]),
        shape=tuple(sizes),
        order=plain(len(sizes)),
        dtype=source.dtype,
    )


def scatter_add(e: Emitter, x: Any, dim: int, places: Any, source: Any) -> Value:
    where = all_places(e, places, dim % len(shape_of(x)), shape_of(places), shape_of(x))
    return e.op("ADD", *operands(e, x, scattered(e, where, _corner(e, source, shape_of(places)), shape_of(x))))


def _corner(e: Emitter, source: Any, sizes: Sequence[int]) -> Any:
    """Torch reads only what the index covers."""
    if isinstance(source, Tensor):
        return source[tuple(slice(size) for size in sizes)]
    for dim, size in enumerate(sizes):
        source = cut_out(e, source, dim, 0, size)
    return source


def scatter_value(e: Emitter, x: Any, dim: int, places: Any, value: float) -> Value:
    where = all_places(e, places, dim % len(shape_of(x)), shape_of(places), shape_of(x))
    hits = scattered(e, where, torch.ones(shape_of(places)), shape_of(x))
    return select(e, truth(e, hits), *(torch.tensor(value, dtype=e.result_dtype()), x))


def scatter(e: Emitter, x: Any, dim: int, places: Any, source: Any) -> Value:
    """Where no position comes twice, what is added to zeros is what is put there."""
    _demand_different(e, places, dim)
    where = all_places(e, places, dim % len(shape_of(x)), shape_of(places), shape_of(x))
    hits = scattered(e, where, torch.ones(shape_of(places)), shape_of(x))
    return select(e, truth(e, hits), scattered(e, where, _corner(e, source, shape_of(places)), shape_of(x)), x)


def _demand_different(e: Emitter, places: Any, dim: int) -> None:
    if not isinstance(places, Tensor) or any(
        row.unique().numel() != row.numel()
        for row in places.movedim(dim, -1).flatten(0, -2 if places.ndim > 1 else -1)
        if row.ndim
    ):
        raise e.fail("putting values at positions that are computed, or that come twice")


def index_put(e: Emitter, x: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Any:
    """x[i, :, j] = values, or += values; where a mask is computed, one value for all that it picks."""
    first, sizes = indices[0], shape_of(x)
    masked = len(indices) == 1 and first.dtype is torch.bool and isinstance(first, Value)
    if masked and not accumulate and math.prod(shape_of(values)) == 1:
        mask = e.reshape(first, (*shape_of(first), *[1] * (len(sizes) - len(shape_of(first)))))
        return select(e, mask, e.reshape(values, ()), e.value(x))
    used, listed = positions(e, indices)
    rest = [dim for dim in range(len(sizes)) if dim not in used]
    order = [*used, *rest]
    moved = e.permute(e.value(x), order)
    block = torch.broadcast_shapes(*(shape_of(places) for places in listed))
    put = _put(e, moved, listed, _to_front(e, values, used, block, [sizes[dim] for dim in rest]), accumulate)
    return e.permute(put, [order.index(dim) for dim in range(len(sizes))])


def _to_front(e: Emitter, values: Any, used: Sequence[int], block: Sequence[int], rest: Sequence[int]) -> Any:
    """What is put, with the block of indices ahead: torch has it where the first of adjacent ones stands."""
    ahead = used[0] if [*used] == [*range(used[0], used[0] + len(used))] else 0
    given = copied_to(e, values, (*rest[:ahead], *block, *rest[ahead:]))
    count = len(block)
    return e.permute(given, [*range(ahead, ahead + count), *range(ahead), *range(ahead + count, count + len(rest))])


def _put(e: Emitter, x: Any, listed: Sequence[Any], updates: Any, accumulate: bool) -> Value:
    sizes = shape_of(x)
    bounds = sizes[: len(listed)]
    if not accumulate and not _differ(listed, bounds) and not _of_a_sort(e.node.args[1]):
        raise e.fail("putting values at positions that are computed, or that come twice")
    places = tuples(e, listed, bounds)
    added = scattered(e, places, updates, sizes)
    if accumulate:
        return e.op("ADD", *operands(e, x, added))
    return select(e, truth(e, scattered(e, places, torch.ones(shape_of(updates)), sizes)), added, x)


def _differ(listed: Sequence[Any], bounds: Sequence[int]) -> bool:
    """Whether all positions are known, and none comes twice."""
    if not all(isinstance(places, Tensor) for places in listed):
        return False
    rows = torch.stack([places % size for places, size in zip(torch.broadcast_tensors(*listed), bounds, strict=True)])
    columns = rows.flatten(1)
    return bool(columns.unique(dim=1).shape[1] == columns.shape[1])


def _of_a_sort(indices: Any) -> bool:
    """Whether the only positions are where a sort of one dimension took its values from: each comes once."""
    used = [node for node in indices if node is not None]
    node = used[0]
    return (
        len(used) == 1
        and node.target is operator.getitem
        and node.args[1] == 1
        and node.args[0].target in (aten.sort.default, aten.sort.stable, aten.topk.default)
        and node.meta["val"].ndim == 1
    )


def slice_scatter(
    e: Emitter, x: Any, source: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    """``x`` with ``source`` written into a slice."""
    value, dim = e.value(x), dim % len(shape_of(x))
    size = value.sizes[dim]
    places = range(size)[slice(start, end if end is None else min(end, sys.maxsize), step)]
    if len(places) == size:
        return e.cast(source, e.result_dtype())
    if step != 1:
        kept = torch.arange(size)
        kept[torch.tensor(places)] = size + torch.arange(len(places))
        return take(e, cat(e, [value, e.cast(source, e.result_dtype())], dim), dim, kept)
    parts: list[Any] = [cut_out(e, value, dim, 0, places.start)] if places.start else []
    parts.append(e.cast(source, e.result_dtype()))
    if places.stop < size:
        parts.append(cut_out(e, value, dim, places.stop, size - places.stop))
    return cat(e, parts, dim)


def select_scatter(e: Emitter, x: Any, source: Any, dim: int, place: int) -> Any:
    dim %= len(shape_of(x))
    place %= shape_of(x)[dim]
    sizes = shape_of(source)
    return slice_scatter(e, x, e.reshape(source, (*sizes[:dim], 1, *sizes[dim:])), dim, place, place + 1)


def copied(e: Emitter, x: Any, source: Any, *_: Any) -> Any:
    """``source`` in the shape and dtype of ``x``."""
    return copied_to(e, source, tuple(shape_of(x)))


def copied_to(e: Emitter, source: Any, target: tuple[int, ...]) -> Any:
    value = e.cast(source, e.result_dtype())
    if isinstance(value, Tensor):
        return value.expand(target)
    if value.sizes == target:
        return value
    lifted = e.in_order(e.reshape(value, (*[1] * (len(target) - len(value.order)), *value.sizes)))
    return e.op("BROADCAST_TO", lifted, e.numbers([*target]), shape=target)


RULES: dict[Operator, Rule] = {
    aten.scatter_add.default: scatter_add,
    aten.scatter.value: scatter_value,
    aten.scatter.src: scatter,
    aten.index_put.default: index_put,
    aten.slice_scatter.default: slice_scatter,
    aten.select_scatter.default: select_scatter,
    aten.copy.default: copied,
    aten.fill.Tensor: copied,
    aten.fill.Scalar: lambda e, x, value: torch.full(x.sizes, value, dtype=e.result_dtype()),
}
