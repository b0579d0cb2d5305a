"""Operators that give the same values another shape, join them, split them, pad them or pick some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_conv import pad as pad_with_zeros
from planish.backends.to_tflite.rules_conv import shape_of
from planish.backends.to_tflite.values import Value, plain
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def reshape(e: Emitter, x: Value, *_: Any) -> Any:
    """Whatever was asked for in numbers: the trace knows the result."""
    return e.reshape(x, e.fake_result().shape)


def permute(e: Emitter, x: Value, dims: Sequence[int]) -> Any:
    return e.permute(x, dims)


def transpose(e: Emitter, x: Value, a: int = -1, b: int = -2) -> Any:
    order = [*plain(len(x.order))]
    if len(order) < 2:
        return x
    order[a], order[b] = order[b], order[a]
    return e.permute(x, order)


def movedim(e: Emitter, x: Value, source: Any, target: Any) -> Any:
    rank = len(x.order)
    sources = [dim % rank for dim in ([source] if isinstance(source, int) else source)]
    targets = [dim % rank for dim in ([target] if isinstance(target, int) else target)]
    order = [dim for dim in range(rank) if dim not in sources]
    for position, dim in sorted(zip(targets, sources, strict=True)):
        order.insert(position, dim)
    return e.permute(x, order)


def expand(e: Emitter, x: Value, *_: Any, **__: Any) -> Value:
    target = tuple(e.fake_result().shape)
    lifted = e.reshape(x, (*[1] * (len(target) - len(x.order)), *x.sizes))
    assert isinstance(lifted, Value)
    if lifted.sizes == target:
        return lifted
    shape = tuple(target[dim] for dim in lifted.order)
    return e.move("BROADCAST_TO", lifted, e.numbers(shape), shape=shape)


def repeat(e: Emitter, x: Value, repeats: Sequence[int]) -> Value:
    lifted = e.reshape(x, (*[1] * (len(repeats) - len(x.order)), *x.sizes))
    assert isinstance(lifted, Value)
    times = [repeats[dim] for dim in lifted.order]
    shape = tuple(size * time for size, time in zip(lifted.shape, times, strict=True))
    return e.move("TILE", lifted, e.numbers(times), shape=shape)


def repeat_interleave(e: Emitter, x: Value, times: int, dim: int | None = None, **_: Any) -> Value:
    """Every slice along ``dim`` ``times`` times in a row."""
    if dim is None:
        x, dim = e.reshape(x, (-1,) if isinstance(x, Tensor) else (e.fake(0).numel(),)), 0  # type: ignore[assignment]
    places = torch.arange(x.sizes[dim]).repeat_interleave(times)
    return take(e, x, dim, places)


def take(e: Emitter, x: Value, dim: int, places: Tensor | Value) -> Value:
    """Slices of ``x`` along ``dim``, at the positions in a vector."""
    place = x.place(dim)
    count = shape_of(places)[0]
    shape = (*x.shape[:place], count, *x.shape[place + 1 :])
    return e.move("GATHER", x, e.value(places), shape=shape, order=x.order, axis=place)


def cat(e: Emitter, tensors: Sequence[Any], dim: int = 0) -> Any:
    """Integers need one scale for all that is joined."""
    dtype = e.result_dtype()
    kept = [x for x in tensors if shape_of(x) != (0,)]  # torch ignores empty 1-d tensors in any company
    cast = [x if isinstance(x, Value) and x.quantization else e.cast(x, dtype) for x in kept]
    dim %= len(shape_of(cast[0]))
    sides = _in_one_order(e, cast)
    if e.result is not None:
        sides = [e.quantized(side, e.result) for side in sides]
    place = sides[0].place(dim)
    shape = [*sides[0].shape]
    shape[place] = sum(side.shape[place] for side in sides)
    return e.compute("CONCATENATION", *sides, shape=tuple(shape), axis=place) if len(sides) > 1 else sides[0]


def _in_one_order(e: Emitter, tensors: Sequence[Any]) -> list[Value]:
    """As ``aligned``, but a scalar keeps its rank."""
    computed = [x for x in tensors if isinstance(x, Value)]
    order = max(computed, key=lambda x: x.stored.shape).order
    return [e.at(x, order) for x in tensors]


def stack(e: Emitter, tensors: Sequence[Any], dim: int = 0) -> Any:
    dim %= len(shape_of(tensors[0])) + 1
    sizes = [(*shape_of(x)[:dim], 1, *shape_of(x)[dim:]) for x in tensors]
    return cat(e, [e.reshape(x, size) for x, size in zip(tensors, sizes, strict=True)], dim)


def split(e: Emitter, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    """chunk, split and split_with_sizes: the parts' sizes are those of the traced results."""
    start, parts = 0, []
    for part in e.node.meta["val"]:
        parts.append(cut_out(e, x, dim, start, part.shape[dim]))
        start += part.shape[dim]
    return parts


def cut_out(e: Emitter, x: Value, dim: int, start: int, length: int) -> Value:
    place = x.place(dim)
    begin, shape = [0] * len(x.shape), [*x.shape]
    begin[place], shape[place] = start, length
    if tuple(shape) == x.shape:
        return x
    return e.move("SLICE", x, e.numbers(begin), e.numbers(shape), shape=tuple(shape))


def slice_(
    e: Emitter, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    place, dim = x.place(dim), dim % len(x.order)
    picked = range(x.sizes[dim])[slice(start, end, step)]
    if step == 1 or len(picked) <= 1:
        return cut_out(e, x, dim, picked.start, len(picked))
    begin, ends, strides = [0] * len(x.shape), [*x.shape], [1] * len(x.shape)
    begin[place], strides[place] = picked.start, step
    shape = (*x.shape[:place], len(picked), *x.shape[place + 1 :])
    return e.move("STRIDED_SLICE", x, e.numbers(begin), e.numbers(ends), e.numbers(strides), shape=shape)


def narrow(e: Emitter, x: Value, dim: int, start: int, length: int) -> Value:
    return cut_out(e, x, dim, start % x.sizes[dim] if x.sizes[dim] else 0, length)


def select(e: Emitter, x: Value, dim: int, index: int) -> Any:
    dim %= len(x.order)
    return dropped(e, cut_out(e, x, dim, index % x.sizes[dim], 1), [dim])


def dropped(e: Emitter, x: Value, dims: Sequence[int]) -> Any:
    """``x`` without dimensions of size 1."""
    return e.reshape(x, [size for dim, size in enumerate(x.sizes) if dim not in dims])


def unbind(e: Emitter, x: Value, dim: int = 0) -> list[Any]:
    return [select(e, x, dim, index) for index in range(x.sizes[dim % len(x.order)])]


def pad(e: Emitter, x: Value, pads: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    rank = len(x.order)
    amounts = [(0, 0)] * rank
    for step in range(len(pads) // 2):
        amounts[rank - 1 - step] = (int(pads[2 * step]), int(pads[2 * step + 1]))
    for dim, (before, after) in enumerate(amounts):  # a negative padding cuts off
        if min(before, after) < 0:
            size = x.sizes[dim]
            x = cut_out(e, x, dim, max(-before, 0), size - max(-before, 0) - max(-after, 0))
    amounts = [(max(before, 0), max(after, 0)) for before, after in amounts]
    if all(amount == (0, 0) for amount in amounts):
        return x
    if mode == "constant" and not value:
        return pad_with_zeros(e, x, amounts)
    if mode == "constant":
        return _padded_with(e, e.real(x), amounts, value or 0)
    for dim, amount in enumerate(amounts):
        if amount != (0, 0):
            x = take(e, x, dim, _mirrored(x.sizes[dim], amount, mode))
    return x


def _padded_with(e: Emitter, x: Value, amounts: Sequence[tuple[int, int]], value: float) -> Value:
    ordered = [amounts[dim] for dim in x.order]
    shape = tuple(size + sum(amount) for size, amount in zip(x.shape, ordered, strict=True))
    return e.op("PADV2", x, e.numbers(ordered), e.numbers(value, x.dtype), shape=shape)


def _mirrored(size: int, amount: tuple[int, int], mode: str) -> Tensor:
    """The positions that a reflection, a repeated edge or a circle reads."""
    places = torch.arange(-amount[0], size + amount[1])
    if mode == "circular":
        return places % size
    if mode == "replicate":
        return places.clamp(0, size - 1)
    return (size - 1) - (places.abs() - (size - 1)).abs()


def constant_pad(e: Emitter, x: Value, pads: Sequence[int], value: float = 0) -> Value:
    return pad(e, x, pads, "constant", value)


def border(mode: str) -> Rule:
    return lambda e, x, pads: pad(e, x, pads, mode)


def flip(e: Emitter, x: Value, dims: Sequence[int]) -> Value:
    for dim in dims:
        x = take(e, x, dim, torch.arange(x.sizes[dim]).flip(0))
    return x


def roll(e: Emitter, x: Value, shifts: Any, dims: Any = ()) -> Any:
    shift_list, dim_list = ([s] if isinstance(s, int) else [*s] for s in (shifts, dims))
    if not dim_list:
        return e.reshape(roll(e, e.reshape(x, (e.fake(0).numel(),)), shift_list, [0]), x.sizes)  # type: ignore[arg-type]
    for shift, dim in zip(shift_list, dim_list, strict=True):
        size = x.sizes[dim]
        if ahead := -shift % size:
            parts = [cut_out(e, x, dim, ahead, size - ahead), cut_out(e, x, dim, 0, ahead)]
            x = e.move("CONCATENATION", *parts, shape=x.shape, axis=x.place(dim))
    return x


def pixel_shuffle(e: Emitter, x: Value, factor: int) -> Any:
    """[N, C*f*f, H, W] -> [N, C, H*f, W*f]."""
    *ahead, channels, height, width = x.sizes
    cut = e.reshape(x, (*ahead, channels // factor**2, factor, factor, height, width))
    rank = len(ahead)
    moved = e.permute(cut, [*range(rank), rank, rank + 3, rank + 1, rank + 4, rank + 2])
    return e.reshape(moved, (*ahead, channels // factor**2, height * factor, width * factor))


def pixel_unshuffle(e: Emitter, x: Value, factor: int) -> Any:
    *ahead, channels, height, width = x.sizes
    cut = e.reshape(x, (*ahead, channels, height // factor, factor, width // factor, factor))
    rank = len(ahead)
    moved = e.permute(cut, [*range(rank), rank, rank + 2, rank + 4, rank + 1, rank + 3])
    return e.reshape(moved, (*ahead, channels * factor**2, height // factor, width // factor))


def channel_shuffle(e: Emitter, x: Value, groups: int) -> Any:
    *_, channels = x.sizes[:2]
    cut = e.reshape(x, (x.sizes[0], groups, channels // groups, *x.sizes[2:]))
    return e.reshape(e.permute(cut, [0, 2, 1, *range(3, len(x.sizes) + 1)]), x.sizes)


def unfold(e: Emitter, x: Value, dim: int, length: int, step: int) -> Any:
    """Windows along ``dim``; the place inside the window becomes the last dimension."""
    rank, dim = len(x.order), dim % len(x.order)
    count = (x.sizes[dim] - length) // step + 1
    places = torch.arange(count)[:, None] * step + torch.arange(length)
    windows = take(e, x, dim, places.flatten())
    cut = e.reshape(windows, (*x.sizes[:dim], count, length, *x.sizes[dim + 1 :]))
    return e.permute(cut, [*range(dim + 1), *range(dim + 2, rank + 1), dim + 1])


def diagonal(e: Emitter, x: Value, offset: int = 0, a: int = 0, b: int = 1) -> Value:
    rank, count = len(x.order), e.fake_result().shape[-1]
    a, b = a % rank, b % rank
    moved = e.permute(x, [*(dim for dim in range(rank) if dim not in (a, b)), a, b])
    assert isinstance(moved, Value)
    width = x.sizes[b]
    flat = e.reshape(moved, (*moved.sizes[:-2], moved.sizes[-2] * width))
    first = offset if offset >= 0 else -offset * width
    return take(e, flat, -1, first + torch.arange(count) * (width + 1))  # type: ignore[arg-type]


_RESHAPES = (
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.reshape_as.default, aten.view_as.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default,
)  # fmt: skip

RULES: dict[Operator, Rule] = {
    **dict.fromkeys(_RESHAPES, reshape),
    aten.permute.default: permute, aten.transpose.int: transpose, aten.swapaxes.default: transpose,
    aten.t.default: transpose, aten.mT.default: transpose, aten.adjoint.default: transpose,
    aten.numpy_T.default: lambda e, x: e.permute(x, [*reversed(range(len(x.order)))]),
    aten.movedim.int: movedim, aten.movedim.intlist: movedim,
    aten.expand.default: expand, aten.expand_as.default: expand, aten.repeat.default: repeat,
    aten.repeat_interleave.self_int: repeat_interleave,
    aten.cat.default: cat, aten.concat.default: cat, aten.stack.default: stack,
    aten.split.Tensor: split, aten.split.sizes: split, aten.split_with_sizes.default: split, aten.chunk.default: split,
    aten.unbind.int: unbind, aten.slice.Tensor: slice_, aten.narrow.default: narrow, aten.select.int: select,
    aten.pad.default: pad, aten.constant_pad_nd.default: constant_pad,
    aten.reflection_pad1d.default: border("reflect"), aten.replication_pad1d.default: border("replicate"),
    aten.reflection_pad2d.default: border("reflect"), aten.replication_pad2d.default: border("replicate"),
    aten.reflection_pad3d.default: border("reflect"), aten.replication_pad3d.default: border("replicate"),
    aten.flip.default: flip, aten.roll.default: roll, aten.pixel_shuffle.default: pixel_shuffle,
    aten.pixel_unshuffle.default: pixel_unshuffle, aten.channel_shuffle.default: channel_shuffle,
    aten.unfold.default: unfold, aten.diagonal.default: diagonal,
}  # fmt: skip
