"""Operators that pick values by position, put values at positions, or sort."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Size, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten
_END = sys.maxsize


def slice_(
    e: Emitter, x: Value, dim: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Value:
    start = 0 if start is None else start
    end = _END if end is None else end
    if start == 0 and isinstance(end, int) and end >= _END and step == 1:
        return x
    return e.op("Slice", x, e.sizes([start]), e.sizes([end]), e.constant([dim]), e.constant([step]))


def narrow(e: Emitter, x: Value, dim: int, start: Size, length: Size) -> Value:
    if not isinstance(start, int) or not isinstance(length, int):
        raise e.fail("narrow with dynamic bounds")
    return slice_(e, x, dim, start, start + length)


def select(e: Emitter, x: Value, dim: int, index: Size) -> Value:
    return e.op("Gather", x, e.constant(index) if isinstance(index, int) else index, axis=dim)


def index_select(e: Emitter, x: Value, dim: int, index: Value) -> Value:
    return e.op("Gather", x, index, axis=dim)


def gather(e: Emitter, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    return e.op("GatherElements", x, index, axis=dim)


# ---------------------------------------------------------------------- x[i, j, ...]


def index(e: Emitter, x: Value, indices: Sequence[Value | None]) -> Value:
    used, listed = _positions(e, indices, 1)
    if len(used) == 1:
        return e.op("Gather", x, listed[0], axis=used[0])
    rank, block = e.fake(0).ndim, _block_rank(e)
    picked = e.op("GatherND", _to_front(e, x, used, rank), _tuples(e, listed))
    if not _adjacent(used) or used[0] == 0:
        return picked
    total = block + rank - len(used)  # the block of indices goes where the first of them stood
    ahead = [*range(block, block + used[0])]
    return e.op("Transpose", picked, perm=[*ahead, *range(block), *range(block + used[0], total)])


def index_put(e: Emitter, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False) -> Value:
    masks = [node.meta["val"] for node in e.node.args[1] if node is not None]  # type: ignore[union-attr]
    if len(indices) == 1 and masks[0].dtype is torch.bool and e.fake(2).ndim == 0 and not accumulate:
        axes = e.constant([*range(masks[0].ndim, e.fake(0).ndim)], torch.int64)
        mask = e.op("Unsqueeze", indices[0], axes) if masks[0].ndim < e.fake(0).ndim else indices[0]
        return e.op("Where", mask, values, x)
    used, listed = _positions(e, indices, 1)
    rank, block = e.fake(0).ndim, _block_rank(e)
    if used[0] != 0 and _adjacent(used) and e.fake(2).ndim > rank - len(used) - used[0]:
        values = _block_to_front(e, values, block, used[0], block + rank - len(used))
    moved, places = _to_front(e, x, used, rank), _tuples(e, listed)
    kept = e.op("Shape", moved, start=len(used))
    shape = e.op("Concat", e.op("Shape", places, start=0, end=-1), kept, axis=0)
    put = e.op("ScatterND", moved, places, e.op("Expand", values, shape), reduction="add" if accumulate else None)
    order = [*used, *(dim for dim in range(rank) if dim not in used)]
    return put if order == [*range(rank)] else e.op("Transpose", put, perm=[order.index(dim) for dim in range(rank)])


def _block_to_front(e: Emitter, values: Value, block: int, ahead: int, total: int) -> Value:
    missing = total - e.fake(2).ndim
    if missing:
        values = e.op("Unsqueeze", values, e.constant([*range(missing)]))
    return e.op("Transpose", values, perm=[*range(ahead, ahead + block), *range(ahead), *range(ahead + block, total)])


def _positions(e: Emitter, indices: Sequence[Value | None], argument: int) -> tuple[list[int], list[Value]]:
    """The dimensions that are indexed and their INT64 indices; a mask becomes one index for each of its dimensions."""
    used: list[int] = []
    listed: list[Value] = []
    dim = 0
    for value, node in zip(indices, e.node.args[argument], strict=True):  # type: ignore[arg-type]
        fake = None if node is None else node.meta["val"]
        if value is None or fake is None:
            dim += 1
        elif fake.dtype in (torch.bool, torch.uint8):
            found = e.op("NonZero", value)
            listed += [e.op("Gather", found, e.constant(row), axis=0) for row in range(fake.ndim)]
            used += [*range(dim, dim + fake.ndim)]
            dim += fake.ndim
        else:
            listed.append(value if fake.dtype is torch.int64 else e.cast(value, torch.int64))
            used.append(dim)
            dim += 1
    return used, listed


def _block_rank(e: Emitter) -> int:
    fakes = [node.meta["val"] for node in e.node.args[1] if node is not None]  # type: ignore[union-attr]
    return max(1 if fake.dtype in (torch.bool, torch.uint8) else fake.ndim for fake in fakes)


def _adjacent(used: Sequence[int]) -> bool:
    return [*used] == [*range(used[0], used[0] + len(used))]


def _to_front(e: Emitter, x: Value, used: Sequence[int], rank: int) -> Value:
    order = [*used, *(dim for dim in range(rank) if dim not in used)]
    return x if order == [*range(rank)] else e.op("Transpose", x, perm=order)


def _tuples(e: Emitter, listed: Sequence[Value]) -> Value:
    """Indices broadcast against each other (adding zeros does that, whatever their sizes) as one [..., n] tensor."""
    last = e.constant([-1])
    if len(listed) == 1:
        return e.op("Unsqueeze", listed[0], last)
    zeros = [e.op("Mul", value, e.constant(0)) for value in listed]
    common = zeros[0]
    for zero in zeros[1:]:
        common = e.op("Add", common, zero)
    return e.op("Concat", *(e.op("Unsqueeze", e.op("Add", value, common), last) for value in listed), axis=-1)


# ---------------------------------------------------------------------- scatter


def scatter(reduction: str | None = None) -> Rule:
    def rule(e: Emitter, x: Value, dim: int, places: Value, source: Any, reduce: str | None = None) -> Value:
        kind = {"add": "add", "multiply": "mul", None: reduction}[reduce]
        if isinstance(source, (int, float)):
            updates = e.op("Expand", e.constant(source, e.result_dtype()), e.op("Shape", places))
        elif e.fake(2).shape == e.fake(3).shape:
            updates = source
        else:  # torch reads only the corner that the index covers
            rank = e.fake(3).ndim
            updates = e.op("Slice", source, e.constant([0] * rank), e.op("Shape", places))
        return e.op("ScatterElements", x, places, updates, axis=dim, reduction=kind)

    return rule


def scatter_reduce(
    e: Emitter, x: Value, dim: int, places: Value, source: Value, reduce: str, include_self: bool = True
) -> Value:
    """Without itself, a value that is written to begins with what changes nothing; a mean is a sum by its count."""
    kind, neutral = {
        "sum": ("add", 0.0), "mean": ("add", 0.0), "prod": ("mul", 1.0), "amax": ("max", -math.inf),
        "amin": ("min", math.inf),
    }[reduce]  # fmt: skip
    counts = reduce == "mean" or not include_self
    if counts and not e.result_dtype().is_floating_point:
        raise e.fail(f"scatter_reduce {reduce!r} with include_self={include_self} of whole numbers")
    written = _written(e, x, dim, places) if counts else None
    if not include_self:
        x = e.op("Where", e.op("Greater", written, e.constant(0.0, e.result_dtype())),
                 e.constant(neutral, e.result_dtype()), x)  # fmt: skip
    result: Value = scatter(kind)(e, x, dim, places, source)
    if reduce != "mean":
        return result
    one = e.constant(1.0, e.result_dtype())
    return e.op("Div", result, e.op("Add", written, one) if include_self else e.op("Max", written, one))


def _written(e: Emitter, x: Value, dim: int, places: Value) -> Value:
    """How often each value of ``x`` is written to."""
    none, ones = (
        e.op("Expand", e.constant(number, e.result_dtype()), e.op("Shape", like))
        for number, like in ((0.0, x), (1.0, places))
    )
    return e.op("ScatterElements", none, places, ones, axis=dim, reduction="add")


def slice_scatter(
    e: Emitter, x: Value, source: Value, dim: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Value:
    """``x`` with ``source`` written into a slice: joined from its parts, or scattered where these are not known."""
    size, rank = e.fake(0).shape[dim], e.fake(0).ndim
    source = source if e.fake(1).dtype is e.result_dtype() else e.cast(source, e.result_dtype())
    if start in (None, 0) and step == 1 and (end is None or (isinstance(end, int) and end >= _END)):
        return source
    if not isinstance(size, int) or not isinstance(start, int | None) or not isinstance(end, int | None) or step != 1:
        everything = e.op("Range", e.constant(0), e.size(_length(e, x, dim)), e.constant(1))
        return _scattered(e, x, source, dim, slice_(e, everything, 0, start, end, step), rank)
    places = range(size)[start:end]
    parts = [slice_(e, x, dim, 0, places.start)] if places.start else []
    parts.append(source)
    if places.stop < size:
        parts.append(slice_(e, x, dim, places.stop, None))
    return e.op("Concat", *parts, axis=dim) if len(parts) > 1 else source


def _length(e: Emitter, x: Value, dim: int) -> Size:
    size = e.fake(0).shape[dim]
    return size if isinstance(size, int) else e.op("Gather", e.op("Shape", x), e.constant(dim), axis=0)


def _scattered(e: Emitter, x: Value, source: Value, dim: int, places: Value, rank: int) -> Value:
    """``places``: the positions along ``dim`` that ``source``, of the same rank as ``x``, goes to."""
    column = e.op("Reshape", places, e.constant([-1, *[1] * (rank - 1 - dim % rank)]))
    return e.op("ScatterElements", x, e.op("Expand", column, e.op("Shape", source)), source, axis=dim)


def select_scatter(e: Emitter, x: Value, source: Value, dim: int, place: Size) -> Value:
    rank = e.fake(0).ndim
    source = source if e.fake(1).dtype is e.result_dtype() else e.cast(source, e.result_dtype())
    row = e.op("Unsqueeze", source, e.constant([dim % rank]))
    return _scattered(e, x, row, dim, e.sizes([place]), rank)


# ---------------------------------------------------------------------- order


def roll(e: Emitter, x: Value, shifts: Any, dims: Any = ()) -> Value:
    shift_list, dim_list = ([s] if isinstance(s, int) else [*s] for s in (shifts, dims))
    if not dim_list:
        flat = roll(e, e.op("Reshape", x, e.constant([-1])), shift_list, [0])
        return e.op("Reshape", flat, e.op("Shape", x))
    for shift, dim in zip(shift_list, dim_list, strict=True):
        length = e.op("Gather", e.op("Shape", x), e.constant(dim), axis=0)
        places = e.op("Sub", e.op("Range", e.constant(0), length, e.constant(1)), e.constant(shift))
        x = e.op("Gather", x, e.op("Mod", places, length), axis=dim)
    return x


def flip(e: Emitter, x: Value, dims: Sequence[int]) -> Value:
    count = len(dims)
    ends = e.constant([-_END] * count)
    return e.op("Slice", x, e.constant([-1] * count), ends, e.constant([*dims]), e.constant([-1] * count))


def topk(e: Emitter, x: Value, k: Size, dim: int = -1, largest: bool = True, sorted: bool = True) -> Sequence[Value]:
    return e.multi("TopK", 2, x, e.sizes([k]), axis=dim, largest=int(largest), sorted=int(sorted))


def sort(e: Emitter, x: Value, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Sequence[Value]:
    if e.fake(0).ndim == 0:
        return [x, e.constant(0)]
    count = e.op("Gather", e.op("Shape", x), e.constant([dim]), axis=0)
    return e.multi("TopK", 2, x, count, axis=dim, largest=int(descending), sorted=1)


def stable_sort(
    e: Emitter, x: Value, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Sequence[Value]:
    return sort(e, x, dim, descending)


def kth_value(e: Emitter, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> list[Value]:
    place = e.constant([k - 1] if keepdim else k - 1, torch.int64)
    return [e.op("Gather", ordered, place, axis=dim) for ordered in sort(e, x, dim)]


def median(e: Emitter, x: Value, dim: int = -1, keepdim: bool = False) -> list[Value]:
    size = e.fake(0).shape[dim]
    if not isinstance(size, int):
        raise e.fail("the median over a dynamic dimension")
    return kth_value(e, x, (size + 1) // 2, dim, keepdim)


RULES: dict[Operator, Rule] = {
    aten.slice.Tensor: slice_, aten.narrow.default: narrow, aten.select.int: select,
    aten.index_select.default: index_select, aten.gather.default: gather, aten.index.Tensor: index,
    aten.index_put.default: index_put,
    aten.nonzero.default: lambda e, x: e.op("Transpose", e.op("NonZero", x), perm=[1, 0]),
    aten.scatter.src: scatter(), aten.scatter.value: scatter(), aten.scatter_add.default: scatter("add"),
    aten.scatter.reduce: scatter(), aten.scatter_reduce.two: scatter_reduce,
    aten.slice_scatter.default: slice_scatter, aten.select_scatter.default: select_scatter,
    aten.roll.default: roll, aten.flip.default: flip, aten.topk.default: topk,
    aten.sort.default: sort, aten.sort.stable: stable_sort, aten.argsort.default: lambda e, *args: sort(e, *args)[1],
    aten.kthvalue.default: kth_value, aten.median.dim: median,
}  # fmt: skip
