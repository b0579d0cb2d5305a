"""Operators that give the same values another shape, join them or split them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Size, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def size(e: Emitter, x: Value, dim: int) -> Value | int:
    known = e.fake(0).shape[dim]
    if isinstance(known, int):
        return known
    dim %= e.fake(0).ndim
    return e.op("Squeeze", e.op("Shape", x, start=dim, end=dim + 1), e.constant([0]))


def reshape(e: Emitter, x: Value, sizes: Sequence[Size]) -> Value:
    """Dynamic sizes become 0 (copy the input's) or -1 (the rest) where that says the same: no Shape nodes then."""
    before, after = e.fake(0).shape, e.fake_result().shape
    target: list[Size] = []
    for axis, wanted in enumerate(after):
        if isinstance(wanted, int):
            target.append(wanted)
        elif axis < len(before) and _same(before[axis], wanted):
            target.append(0)
        else:
            target.append(-1)
    if target.count(-1) <= 1 and 0 not in after:
        return e.op("Reshape", x, e.constant(target, torch.int64))
    return e.op("Reshape", x, e.sizes(sizes), allowzero=int(0 in after))


def _same(a: Any, b: Any) -> bool:
    return not isinstance(a, int) and not isinstance(b, int) and bool(a.node.expr == b.node.expr)


def flatten(e: Emitter, x: Value, start: int = 0, end: int = -1) -> Value:
    rank = e.fake(0).ndim
    return reshape(e, x, [*_sizes(e, x, 0, start % max(rank, 1)), -1, *_sizes(e, x, end % max(rank, 1) + 1, rank)])


def unflatten(e: Emitter, x: Value, dim: int, sizes: Sequence[Size]) -> Value:
    rank = e.fake(0).ndim
    return reshape(e, x, [*_sizes(e, x, 0, dim % rank), *sizes, *_sizes(e, x, dim % rank + 1, rank)])


def _sizes(e: Emitter, x: Value, start: int, end: int) -> list[Size]:
    return [size(e, x, dim) for dim in range(start, end)]


def permute(e: Emitter, x: Value, dims: Sequence[int]) -> Value:
    rank = e.fake(0).ndim
    return e.op("Transpose", x, perm=[dim % rank for dim in dims])


def transpose(e: Emitter, x: Value, a: int, b: int) -> Value:
    order = [*range(e.fake(0).ndim)]
    order[a], order[b] = order[b], order[a]
    return e.op("Transpose", x, perm=order) if order else x


def matrix_transpose(e: Emitter, x: Value) -> Value:
    return transpose(e, x, -1, -2) if e.fake(0).ndim >= 2 else x


def reverse_dims(e: Emitter, x: Value) -> Value:
    return e.op("Transpose", x, perm=[*reversed(range(e.fake(0).ndim))])


def movedim(e: Emitter, x: Value, source: Any, target: Any) -> Value:
    rank = e.fake(0).ndim
    sources = [dim % rank for dim in ([source] if isinstance(source, int) else source)]
    targets = [dim % rank for dim in ([target] if isinstance(target, int) else target)]
    order = [dim for dim in range(rank) if dim not in sources]
    for position, dim in sorted(zip(targets, sources, strict=True)):
        order.insert(position, dim)
    return e.op("Transpose", x, perm=order)


def squeeze(e: Emitter, x: Value, dims: int | Sequence[int] | None = None) -> Value:
    shape = e.fake(0).shape
    asked = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = [dim % len(shape) for dim in asked if len(shape) and isinstance(shape[dim], int) and shape[dim] == 1]
    return e.op("Squeeze", x, e.constant(axes)) if axes else x


def unsqueeze(e: Emitter, x: Value, dim: int) -> Value:
    return e.op("Unsqueeze", x, e.constant([dim % e.fake_result().ndim]))


def expand(e: Emitter, x: Value, sizes: Sequence[Size], implicit: bool = False) -> Value:
    """Size 1 broadcasts: where the input has the wanted size already, 1 asks for nothing."""
    before, after = e.fake(0).shape, e.fake_result().shape
    offset = len(after) - len(before)
    target: list[Size] = []
    for axis, (given, wanted) in enumerate(zip(sizes, after, strict=True)):
        own = before[axis - offset] if axis >= offset else None
        kept = own is not None and (_same(own, wanted) or (isinstance(own, int) and own == wanted))
        target.append(1 if kept else wanted if isinstance(wanted, int) else given)
    if all(s == 1 for s in target) and offset == 0:
        return x
    return e.op("Expand", x, e.sizes(target))


def expand_as(e: Emitter, x: Value, other: Value) -> Value:
    return e.op("Expand", x, e.op("Shape", other))


def repeat(e: Emitter, x: Value, repeats: Sequence[Size]) -> Value:
    missing = len(repeats) - e.fake(0).ndim
    if missing:
        x = e.op("Unsqueeze", x, e.constant([*range(missing)]))
    return e.op("Tile", x, e.sizes(repeats))


def repeat_interleave(e: Emitter, x: Value, times: int, dim: int | None = None, *, output_size: Any = None) -> Value:
    """Every slice along ``dim`` ``times`` times in a row."""
    rank = e.fake(0).ndim
    if dim is None:
        return e.op(
            "Reshape", e.op("Tile", e.op("Reshape", x, e.constant([-1, 1])), e.constant([1, times])), e.constant([-1])
        )
    dim %= rank
    tiled = e.op(
        "Tile",
        e.op("Unsqueeze", x, e.constant([dim + 1])),
        e.constant([*[1] * (dim + 1), times, *[1] * (rank - dim - 1)]),
    )
    sizes = [size if isinstance(size, int) else 0 for size in e.fake_result().shape]
    if 0 not in sizes[dim:]:  # a 0 copies the size of the tiled tensor, which still is that of x ahead of dim
        return e.op("Reshape", tiled, e.constant(sizes))
    ahead, behind = e.op("Shape", x, start=0, end=dim), e.op("Shape", x, start=dim + 1)
    return e.op("Reshape", tiled, e.op("Concat", ahead, e.constant([-1]), behind, axis=0))


def channel_shuffle(e: Emitter, x: Value, groups: int) -> Value:
    channels = int(e.fake(0).shape[1])
    order = torch.arange(channels).reshape(groups, -1).t().flatten()
    return e.op("Gather", x, e.constant(order.tolist()), axis=1)


def meshgrid(e: Emitter, vectors: Sequence[Value], indexing: str = "ij") -> list[Value]:
    if indexing != "ij":
        raise e.fail("meshgrid in 'xy' order")
    count = len(vectors)
    columns = [
        e.op("Reshape", v, e.constant([-1 if axis == own else 1 for axis in range(count)]))
        for own, v in enumerate(vectors)
    ]
    fakes: Any = e.node.args[0]
    ranks = [fake.meta["val"].ndim for fake in fakes]
    sizes = [e.op("Shape", v) if rank else e.constant([1]) for v, rank in zip(vectors, ranks, strict=True)]
    shape = e.op("Concat", *sizes, axis=0)
    return [e.op("Expand", column, shape) for column in columns]


def cat(e: Emitter, tensors: Sequence[Value], dim: int = 0) -> Value:
    dtype = e.result_dtype()
    fakes = [arg.meta["val"] for arg in e.node.args[0]]  # type: ignore[union-attr]
    kept = [
        value if fake.dtype is dtype else e.cast(value, dtype)
        for value, fake in zip(tensors, fakes, strict=True)
        if not (fake.ndim == 1 and fake.shape[0] == 0)  # torch ignores empty 1-d tensors in any company
    ]
    return e.op("Concat", *kept, axis=dim)


def stack(e: Emitter, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = dim % e.fake_result().ndim
    return e.op("Concat", *(e.op("Unsqueeze", tensor, e.constant([axis])) for tensor in tensors), axis=axis)


def split(e: Emitter, x: Value, sizes: Any, dim: int = 0) -> Sequence[Value]:
    """chunk, split and split_with_sizes: the parts' sizes are those of the traced results."""
    parts = [part.shape[dim] for part in e.node.meta["val"]]
    if not all(isinstance(part, int) for part in parts):
        raise e.fail("splitting a dynamic dimension")
    if len(parts) == 1:
        return [x]
    return e.multi("Split", len(parts), x, e.constant(parts), axis=dim)


def unbind(e: Emitter, x: Value, dim: int = 0) -> Sequence[Value]:
    count = len(e.node.meta["val"])
    return [e.op("Gather", x, e.constant(index), axis=dim) for index in range(count)]


def pixel_unshuffle(e: Emitter, x: Value, factor: int) -> Value:
    """[N, C, H*f, W*f] -> [N, C*f*f, H, W], the channel outermost: SpaceToDepth has it innermost."""
    channels, height, width = e.fake_result().shape[-3:]
    if not all(isinstance(s, int) for s in (channels, height, width)) or e.fake(0).ndim != 4:
        raise e.fail("pixel_unshuffle of a dynamic image")
    cut = e.op("Reshape", x, e.constant([0, -1, height, factor, width, factor], torch.int64))
    return e.op(
        "Reshape",
        e.op("Transpose", cut, perm=[0, 1, 3, 5, 2, 4]),
        e.constant([0, channels, height, width], torch.int64),
    )


def pixel_shuffle(e: Emitter, x: Value, factor: int) -> Value:
    return e.op("DepthToSpace", x, blocksize=factor, mode="CRD")


def unfold(e: Emitter, x: Value, dim: int, length: int, step: int) -> Value:
    """Windows along ``dim``; the place inside the window becomes the last dimension."""
    rank, count = e.fake(0).ndim, e.fake_result().shape[dim]
    if not isinstance(count, int):
        raise e.fail("windows over a dynamic dimension")
    dim %= rank
    places = torch.arange(count)[:, None] * step + torch.arange(length)
    windows = e.op("Gather", x, e.constant(places.tolist(), torch.int64), axis=dim)
    return e.op("Transpose", windows, perm=[*range(dim + 1), *range(dim + 2, rank + 1), dim + 1])


def diagonal(e: Emitter, x: Value, offset: int = 0, a: int = 0, b: int = 1) -> Value:
    rank, shape, count = e.fake(0).ndim, e.fake(0).shape, e.fake_result().shape[-1]
    a, b = a % rank, b % rank
    if not isinstance(shape[b], int) or not isinstance(count, int):
        raise e.fail("the diagonal of dynamic dimensions")
    moved = e.op("Transpose", x, perm=[*(dim for dim in range(rank) if dim not in (a, b)), a, b])
    flat = e.op("Reshape", moved, e.constant([*[0] * (rank - 2), -1], torch.int64))
    first = offset if offset >= 0 else -offset * shape[b]
    return e.op(
        "Gather", flat, e.constant([first + place * (shape[b] + 1) for place in range(count)], torch.int64), axis=-1
    )


def column_image(
    e: Emitter, x: Value, size: Sequence[int], kernel: Any, dilation: Any, padding: Any, stride: Any
) -> Value:
    image, block = e.constant([*size]), e.constant([*kernel])
    return e.op("Col2Im", x, image, block, dilations=[*dilation], pads=[*padding] * 2, strides=[*stride])


def number_of_elements(e: Emitter, x: Value) -> Value | int:
    known = e.fake(0).numel()
    return known if isinstance(known, int) else e.op("Size", x)


def sum_of_sizes(e: Emitter, sizes: Sequence[Size]) -> Value:
    total = e.size(sizes[0])
    for size_ in sizes[1:]:
        total = e.op("Add", total, e.size(size_))
    return total


RULES: dict[Operator, Rule] = {
    aten.sym_size.int: size, aten.sym_numel.default: number_of_elements, torch.sym_sum: sum_of_sizes,
    aten.reshape.default: reshape, aten.view.default: reshape, aten._unsafe_view.default: reshape,
    aten.flatten.using_ints: flatten,
    aten.unflatten.int: unflatten, aten.permute.default: permute, aten.transpose.int: transpose,
    aten.swapaxes.default: transpose, aten.t.default: matrix_transpose, aten.mT.default: matrix_transpose,
    aten.numpy_T.default: reverse_dims, aten.adjoint.default: matrix_transpose,
    aten.movedim.int: movedim, aten.movedim.intlist: movedim,
    aten.squeeze.default: squeeze, aten.squeeze.dim: squeeze, aten.squeeze.dims: squeeze,
    aten.unsqueeze.default: unsqueeze,
    aten.expand.default: expand, aten.expand_as.default: expand_as, aten.repeat.default: repeat,
    aten.cat.default: cat, aten.concat.default: cat, aten.stack.default: stack,
    aten.split.Tensor: split, aten.split.sizes: split, aten.split_with_sizes.default: split,
    aten.chunk.default: split,
    aten.unbind.int: unbind, aten.repeat_interleave.self_int: repeat_interleave,
    aten.channel_shuffle.default: channel_shuffle, aten.meshgrid.default: meshgrid, aten.meshgrid.indexing: meshgrid,
    aten.unfold.default: unfold, aten.diagonal.default: diagonal, aten.col2im.default: column_image,
    aten.pixel_shuffle.default: pixel_shuffle, aten.pixel_unshuffle.default: pixel_unshuffle,
}  # fmt: skip
