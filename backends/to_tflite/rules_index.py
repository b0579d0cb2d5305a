"""Operators that pick values by position, put values at positions, or sort."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_arithmetic import operands
from planish.backends.to_tflite.rules_conv import shape_of
from planish.backends.to_tflite.rules_reduce import reduce
from planish.backends.to_tflite.rules_shape import cut_out, take
from planish.backends.to_tflite.rules_shape import select as select_slice
from planish.backends.to_tflite.values import Value, plain
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def index_select(e: Emitter, x: Any, dim: int, places: Any) -> Any:
    value = e.value(x)
    return take(e, value, dim, e.reshape(places, (math.prod(shape_of(places)),)))


def index(e: Emitter, x: Any, indices: Sequence[Any]) -> Any:
    """x[i, :, j]: the indexed dimensions to the front, then GATHER_ND, then back."""
    used, listed = positions(e, indices)
    value = e.value(x)
    if len(used) == 1 and len(shape_of(listed[0])) == 1:
        return take(e, value, used[0], wrapped(e, listed[0], value.sizes[used[0]]))
    rank, block = len(value.order), max(len(shape_of(places)) for places in listed)
    front = e.permute(value, [*used, *(dim for dim in range(rank) if dim not in used)])
    picked = gather_nd(e, front, tuples(e, listed, [value.sizes[dim] for dim in used]))
    if used != [*range(used[0], used[0] + len(used))] or used[0] == 0:
        return picked
    total = block + rank - len(used)  # the block of indices goes where the first of them stood
    return e.permute(picked, [*range(block, block + used[0]), *range(block), *range(block + used[0], total)])


def positions(e: Emitter, indices: Sequence[Any]) -> tuple[list[int], list[Any]]:
    """The dimensions that are indexed and their indices; a constant mask is one index for each of its dimensions."""
    used: list[int] = []
    listed: list[Any] = []
    dim = 0
    for places in indices:
        if places is None:
            dim += 1
            continue
        found = [places]
        if places.dtype in (torch.bool, torch.uint8):
            if not isinstance(places, Tensor):
                raise e.fail("picking by a mask that is computed: how many values it picks has to be known")
            found = [*places.nonzero(as_tuple=True)]
        listed += found
        used += [*range(dim, dim + len(found))]
        dim += len(found)
    return used, listed


def wrapped(e: Emitter, places: Any, size: int) -> Any:
    """Positions counted from the start: TFLite knows no negative ones."""
    if isinstance(places, Tensor):
        return places % size
    return e.op("FLOOR_MOD", places, e.numbers(size))


def tuples(e: Emitter, listed: Sequence[Any], sizes: Sequence[int]) -> Value:
    """Indices, broadcast against each other, as one [..., n] tensor."""
    block = torch.broadcast_shapes(*(shape_of(places) for places in listed))
    columns = []
    for places, size in zip(listed, sizes, strict=True):
        own = wrapped(e, places, size)
        columns.append(_column(e, own, block))
    if all(isinstance(column, Tensor) for column in columns):
        return e.value(torch.cat(columns, -1).to(torch.int32))
    values = [e.in_order(column) for column in columns]
    shape = (*block, len(values))
    return (
        e.op("CONCATENATION", *values, shape=shape, order=plain(len(shape)), axis=len(block))
        if len(values) > 1
        else values[0]
    )


def _column(e: Emitter, places: Any, block: Sequence[int]) -> Any:
    if isinstance(places, Tensor):
        return places.expand(*block).unsqueeze(-1).to(torch.int32)
    own = e.in_order(places)
    lifted = e.reshape(own, (*[1] * (len(block) - len(own.order)), *own.sizes))
    assert isinstance(lifted, Value)
    if lifted.sizes != tuple(block):
        lifted = e.op("BROADCAST_TO", e.in_order(lifted), e.numbers([*block]), shape=tuple(block))
    return e.reshape(lifted, (*block, 1))


def gather_nd(e: Emitter, x: Any, places: Value) -> Value:
    value = e.in_order(x)
    shape = (*places.shape[:-1], *value.shape[places.shape[-1] :])
    return e.move("GATHER_ND", value, places, shape=shape, order=plain(len(shape)))


def gather(e: Emitter, x: Any, dim: int, places: Any, sparse_grad: bool = False) -> Value:
    """Result[i, j] = x[i, places[i, j]]."""
    sizes, rank = shape_of(places), len(shape_of(x))
    return gather_nd(e, x, all_places(e, places, dim % rank, sizes, shape_of(x)))


def all_places(e: Emitter, places: Any, dim: int, sizes: Sequence[int], bounds: Sequence[int]) -> Value:
    columns: list[Any] = [
        places if own == dim else torch.arange(size).reshape([-1 if own == at else 1 for at in range(len(sizes))])
        for own, size in enumerate(sizes)
    ]
    return tuples(e, columns, bounds)


# ---------------------------------------------------------------------- order


def top(e: Emitter, x: Value, k: int, dim: int, largest: bool) -> list[Any]:
    """The largest or smallest along ``dim``, in order, with their positions."""
    if not x.order:
        return [x, torch.zeros((), dtype=torch.int64)]
    value = e.with_last(x, dim)
    ranked = value if largest else e.op("NEG", value)
    shape = (*value.shape[:-1], k)
    best, places = e.new(shape, value.order, value.dtype), e.new(shape, value.order, torch.int32)
    e.multi("TOPK_V2", [ranked, e.numbers(k)], [best, places])
    return [best if largest else e.op("NEG", best), places]


def sort(e: Emitter, x: Value, dim: int = -1, descending: bool = False) -> list[Any]:
    return top(e, x, x.sizes[dim] if x.order else 1, dim, descending)


def stable_sort(
    e: Emitter, x: Value, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> list[Any]:
    return sort(e, x, dim, descending)


def kth_value(e: Emitter, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> list[Any]:
    found = [cut_out(e, ordered, dim, k - 1, 1) for ordered in sort(e, x, dim)]
    return found if keepdim else [select_slice(e, value, dim, 0) for value in found]


def median(e: Emitter, x: Value, dim: int = -1, keepdim: bool = False) -> list[Any]:
    return kth_value(e, x, (x.sizes[dim] + 1) // 2, dim, keepdim)


# ---------------------------------------------------------------------- bags


def embedding_bag(
    e: Emitter, weight: Any, indices: Any, offsets: Any, scale_by_freq: bool = False, mode: int = 0,
    sparse: bool = False, per_sample_weights: Any = None, include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> list[Any]:  # fmt: skip
    """Bags whose offsets are known: rows are gathered, and each bag is reduced."""
    if not isinstance(offsets, Tensor) or (padding_idx is not None and padding_idx >= 0):
        raise e.fail("bags whose sizes are computed, or with a padding index: use an embedding and a mean")
    starts = offsets.tolist()[: -1 if include_last_offset else None]
    count = shape_of(indices)[0]
    ends = [*starts[1:], offsets.tolist()[-1] if include_last_offset else count]
    rows = take(e, e.value(weight), 0, indices)
    if per_sample_weights is not None:
        rows = e.op("MUL", *operands(e, rows, e.reshape(per_sample_weights, (count, 1)), dtype=torch.float32))
    lengths = {end - start for start, end in zip(starts, ends, strict=True)}
    kind = ("SUM", "MEAN", "REDUCE_MAX")[mode]
    if len(lengths) == 1 and starts[0] == 0 and lengths != {0}:
        bags = e.reshape(rows, (len(starts), lengths.pop(), rows.sizes[1]))
        return [reduce(e, kind, bags, [1], keepdim=False), None, None, None]  # type: ignore[arg-type]
    if 0 in lengths:
        raise e.fail("empty bags")
    parts = [
        reduce(e, kind, cut_out(e, rows, 0, start, end - start), [0], keepdim=True)
        for start, end in zip(starts, ends, strict=True)
    ]
    return [e.op("CONCATENATION", *parts, shape=(len(parts), rows.sizes[1]), axis=0), None, None, None]


RULES: dict[Operator, Rule] = {
    aten.index_select.default: index_select, aten.index.Tensor: index, aten.gather.default: gather,
    aten.topk.default: lambda e, x, k, dim=-1, largest=True, sorted=True: top(e, x, k, dim, largest),
    aten.sort.default: sort, aten.sort.stable: stable_sort,
    aten.argsort.default: lambda e, x, *args: sort(e, x, *args)[1],
    aten.kthvalue.default: kth_value, aten.median.dim: median, 
    aten.embedding_bag.padding_idx: embedding_bag, aten._embedding_bag.default: embedding_bag,
    aten._embedding_bag_forward_only.default: embedding_bag,
}  # fmt: skip
