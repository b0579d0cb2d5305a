"""Coupling rules of the ops that only move values: views, permutations, concatenations, cuts, copies, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.coupling.dims import Dim, concatenation, product
from planish.compiler.coupling.inference import Inference, NotUnderstoodError, Rule, Shape, Type, arguments

aten = torch.ops.aten


def reshape(node: fx.Node, inference: Inference) -> Shape:
    """The same factors in the same order, cut elsewhere; sizes that are written out are those of the result."""
    name = {aten.reshape: "shape", aten.unflatten: "sizes"}.get(node.target.overloadpacket, "size")  # type: ignore
    x, result = inference.shape(node.args[0]), inference.fresh(node)
    inference.unify(product(x), product(result))
    given = arguments(node)
    first = given["dim"] % len(x) if "dim" in given else 0
    _rewrite_sizes(node, inference, name, result[first:])
    return result


def _rewrite_sizes(node: fx.Node, inference: Inference, name: str, dims: Sequence[Dim]) -> None:
    for index, (size, dim) in enumerate(zip(arguments(node)[name], dims, strict=False)):
        if size != -1:
            inference.is_size(node, name, dim, index)


def reshape_as(node: fx.Node, inference: Inference) -> Shape:
    x, result = (inference.shape(argument) for argument in node.args[:2])
    inference.unify(product(x), product(result))
    return result


def flatten(node: fx.Node, inference: Inference) -> Shape:
    given, x = arguments(node), inference.shape(node.args[0])
    if not x:
        return (Dim(1),)
    start, end = given["start_dim"] % len(x), given["end_dim"] % len(x)
    return (*x[:start], product(x[start : end + 1]), *x[end + 1 :])


def permute(node: fx.Node, inference: Inference) -> Shape:
    x = inference.shape(node.args[0])
    return tuple(x[axis] for axis in arguments(node)["dims"])


def transpose(node: fx.Node, inference: Inference) -> Shape:
    shape = [*inference.shape(node.args[0])]
    first, second = [*arguments(node).values()][1:3]
    shape[first], shape[second] = shape[second], shape[first]
    return tuple(shape)


def reverse_axes(node: fx.Node, inference: Inference) -> Shape:
    return inference.shape(node.args[0])[::-1]


def swap_last(node: fx.Node, inference: Inference) -> Shape:
    *batch, rows, columns = inference.shape(node.args[0])
    return (*batch, columns, rows)


def move_axes(node: fx.Node, inference: Inference) -> Shape:
    given, x = arguments(node), inference.shape(node.args[0])
    source, destination = (
        [axis % len(x) for axis in ([value] if isinstance(value, int) else value)]
        for value in (given["source"], given["destination"])
    )
    moved = dict(zip(destination, source, strict=True))
    others = iter(axis for axis in range(len(x)) if axis not in source)
    return tuple(x[moved[axis] if axis in moved else next(others)] for axis in range(len(x)))


def unsqueeze(node: fx.Node, inference: Inference) -> Shape:
    shape = [*inference.shape(node.args[0])]
    axis = arguments(node)["dim"] % (len(shape) + 1)
    return (*shape[:axis], Dim(1), *shape[axis:])


def squeeze(node: fx.Node, inference: Inference) -> Shape:
    """``normalize`` has made it name the axes of size 1, so that one cut down to 1 does not vanish."""
    x = inference.shape(node.args[0])
    named = arguments(node).get("dim")
    if named is None:
        raise NotUnderstoodError("it names no axes")
    gone = {axis % len(x) for axis in ([named] if isinstance(named, int) else named)} if x else set()
    return tuple(dim for axis, dim in enumerate(x) if axis not in gone or dim.size != 1)


def expand(node: fx.Node, inference: Inference) -> Shape:
    """Size 1 becomes any size; the others stay."""
    x, fresh = inference.shape(node.args[0]), inference.fresh(node)
    old = (*(None for _ in range(len(fresh) - len(x))), *x)
    result = tuple(mine if mine and mine.size == new.size else new for mine, new in zip(old, fresh, strict=True))
    _rewrite_sizes(node, inference, "size", result)
    return result


def expand_as(node: fx.Node, inference: Inference) -> Shape:
    return inference.broadcast([inference.shape(argument) for argument in node.args[:2]])


def repeat(node: fx.Node, inference: Inference) -> Shape:
    """[a, b] twice is [a, b, a, b]: times x size."""
    x, given = inference.shape(node.args[0]), arguments(node)
    name = "repeats" if "repeats" in given else "dims"
    counts = [inference.size(_value(count)) for count in given[name]]
    missing = len(counts) - len(x)
    if missing < 0:
        raise NotUnderstoodError("it repeats fewer axes than there are")
    times = [Dim(count) for count in counts]
    for index, count in enumerate(times):
        inference.is_size(node, name, count, index)
    return tuple(product([count, dim]) for count, dim in zip(times, [*([Dim(1)] * missing), *x], strict=True))


def repeat_interleave(node: fx.Node, inference: Inference) -> Shape:
    """[a, b] twice is [a, a, b, b]: size x times."""
    given, x = arguments(node), inference.shape(node.args[0])
    if given.get("dim") is None or not isinstance(given["repeats"], int):
        raise NotUnderstoodError("it repeats by a tensor, or all axes as one")
    axis, times = given["dim"] % len(x), Dim(given["repeats"])
    inference.is_size(node, "repeats", times)
    return (*x[:axis], product([x[axis], times]), *x[axis + 1 :])


def _value(size: Any) -> Any:
    return size.meta["val"] if isinstance(size, fx.Node) else size


# ---------------------------------------------------------------------- together and apart


def cat(node: fx.Node, inference: Inference) -> Shape:
    given = arguments(node)
    shapes = [inference.shape(tensor) for tensor in given["tensors"]]
    shapes = [shape for shape in shapes if len(shape) != 1 or shape[0].size]  # torch.cat skips what is [0]
    axis = given["dim"] % len(shapes[0])
    for shape in shapes[1:]:
        inference.unify_shapes(shapes[0][:axis], shape[:axis])
        inference.unify_shapes(shapes[0][axis + 1 :], shape[axis + 1 :])
    together = concatenation(shape[axis] for shape in shapes)
    return (*shapes[0][:axis], together, *shapes[0][axis + 1 :])


def stack(node: fx.Node, inference: Inference) -> Shape:
    given = arguments(node)
    shape = inference.broadcast([inference.shape(tensor) for tensor in given["tensors"]])
    axis = given["dim"] % (len(shape) + 1)
    number = inference.frozen([len(given["tensors"])], "it numbers what is stacked", node)
    return (*shape[:axis], *number, *shape[axis:])


def split(node: fx.Node, inference: Inference) -> Type:
    """The parts one behind the other are the whole. ``normalize`` has written out their sizes."""
    given, x = arguments(node), inference.shape(node.args[0])
    axis = given["dim"] % len(x)
    sizes = given["split_sizes"]
    parts = [Dim(inference.size(_value(size))) for size in sizes]
    inference.unify(x[axis], concatenation(parts))
    for index, part in enumerate(parts):
        inference.is_size(node, "split_sizes", part, index)
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


def split_whatever(node: fx.Node, inference: Inference) -> Type:
    """Into parts whose sizes ``normalize`` could not write out, because they are symbolic."""
    x = inference.shape(node.args[0])
    axis = arguments(node)["dim"] % len(x)
    inference.freeze([x[axis]], "it is split by its size", node)
    parts = [inference.frozen([inference.size(part.shape[axis])], "it is split by its size", node)[0]
             for part in node.meta["val"]]  # fmt: skip
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


def cut_out(node: fx.Node, inference: Inference) -> Shape:
    """The argument = before + result + behind. With a step, it is n x step where that covers it all."""
    given, x = arguments(node), inference.shape(node.args[0])
    axis = given["dim"] % len(x)
    before, middle, behind = _cut(node, inference, given, x[axis], inference.sizes(node)[axis])
    if before.size:
        inference.is_size(node, "start", before)
    if behind.size and "length" in given:
        inference.is_size(node, "length", middle)
    elif behind.size:
        inference.is_size(node, "end", concatenation([before, middle]))
    return (*x[:axis], middle, *x[axis + 1 :])


def _cut(node: fx.Node, inference: Inference, given: dict[str, Any], dim: Dim, size: int) -> tuple[Dim, Dim, Dim]:
    start, step = given["start"] or 0, given.get("step", 1)
    whole = Dim(0), dim, Dim(0)
    if step == 1 and size == dim.size:
        return whole
    if isinstance(start, int) and step == 1 and start + size <= dim.size and _is_plain(given):
        parts = Dim(start), Dim(size), Dim(dim.size - start - size)
        inference.unify(dim, concatenation(parts))
        return parts
    if isinstance(start, int) and step > 1 and dim.size == size * step and 0 <= start < step:
        strided, steps = Dim(size), inference.frozen([step], "it is a step", node)[0]
        inference.unify(dim, product([strided, steps]))
        return Dim(0), strided, Dim(0)
    inference.freeze([dim], "positions are cut out of it", node)
    return Dim(0), inference.frozen([size], "positions are cut out of it", node)[0], Dim(0)


def _is_plain(given: dict[str, Any]) -> bool:
    """Whether the bounds count from the front: ``normalize`` made those of fixed sizes so."""
    end = given.get("end", given.get("length"))
    return given["start"] is None or (given["start"] >= 0 and (end is None or (isinstance(end, int) and end >= 0)))


def select(node: fx.Node, inference: Inference) -> Shape:
    x = inference.shape(node.args[0])
    axis = arguments(node)["dim"] % len(x)
    inference.freeze([x[axis]], "positions are selected from it", node)
    return (*x[:axis], *x[axis + 1 :])


def unbind(node: fx.Node, inference: Inference) -> Type:
    return [select(node, inference) for _ in node.meta["val"]]


def item(node: fx.Node, inference: Inference) -> Type:
    """``operator.getitem``: one of several values."""
    source, index = node.args
    values = inference.types[source]  # type: ignore[index]
    assert isinstance(values, list) and isinstance(index, int)
    found: Type = values[index]
    return found


def write_slice(node: fx.Node, inference: Inference) -> Shape:
    """``slice_scatter``: the written values are a slice of the result."""
    given, x, written = arguments(node), inference.shape(node.args[0]), inference.shape(node.args[1])
    axis = given["dim"] % len(x)
    before, middle, behind = _cut(node, inference, given, x[axis], written[axis].size)
    inference.unify(written[axis], middle)
    if before.size:
        inference.is_size(node, "start", before)
    if behind.size:
        inference.is_size(node, "end", concatenation([before, middle]))
    inference.broadcast([(*x[:axis], *x[axis + 1 :]), (*written[:axis], *written[axis + 1 :])])
    return x


def write_position(node: fx.Node, inference: Inference) -> Shape:
    """``select_scatter``."""
    x, written = inference.shape(node.args[0]), inference.shape(node.args[1])
    inference.broadcast([select(node, inference), written])
    return x


def pad(node: fx.Node, inference: Inference) -> Shape:
    """Padding with a constant is a segment on either side, which can be cut as well; other modes look at neighbours."""
    given, shape = arguments(node), [*inference.shape(node.args[0])]
    amounts = [inference.size(_value(amount)) for amount in given["pad"]]
    constant = given.get("mode", "constant") == "constant"
    for index, (left, right) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        axis = len(shape) - 1 - index
        if left == right == 0:
            continue
        if not constant or min(left, right) < 0:
            inference.freeze([shape[axis]], "it is padded by its own values, or cropped", node)
            shape[axis] = inference.frozen([shape[axis].size + left + right], "it is padded", node)[0]
            continue
        ends = Dim(left), Dim(right)
        for offset, end in enumerate(ends):
            if end.size:
                inference.is_size(node, "pad", end, 2 * index + offset)
        shape[axis] = concatenation([ends[0], shape[axis], ends[1]])
    return tuple(shape)


def reorder(node: fx.Node, inference: Inference) -> Type:
    """flip, roll, cumsum, sort, argsort …: the position counts along the named axes, all if none is named."""
    given, x = arguments(node), inference.shape(node.args[0])
    named = given.get("dims", given.get("dim"))
    axes = range(len(x)) if named is None or named == [] else [named] if isinstance(named, int) else named
    for axis in axes if x else ():
        inference.freeze([x[axis]], "the order along it counts", node)
    value = node.meta["val"]
    return x if isinstance(value, Tensor) else [x for _ in value]


def shuffle_channels(node: fx.Node, inference: Inference) -> Shape:
    """``channel_shuffle``: C = groups x c becomes c x groups."""
    given, x = arguments(node), inference.shape(node.args[0])
    groups, rest = Dim(given["groups"]), Dim(x[1].size // given["groups"])
    inference.unify(x[1], product([groups, rest]))
    inference.is_size(node, "groups", groups)
    return (x[0], product([rest, groups]), *x[2:])


RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.reshape, aten.view, aten._unsafe_view, aten.unflatten), reshape),
    **dict.fromkeys((aten.reshape_as, aten.view_as), reshape_as),
    aten.flatten: flatten,
    aten.permute: permute,
    **dict.fromkeys((aten.transpose, aten.swapaxes, aten.swapdims), transpose),
    **dict.fromkeys((aten.t, aten.numpy_T), reverse_axes),
    **dict.fromkeys((aten.mT, aten.adjoint), swap_last),
    **dict.fromkeys((aten.movedim, aten.moveaxis), move_axes),
    aten.unsqueeze: unsqueeze,
    aten.squeeze: squeeze,
    **dict.fromkeys((aten.expand, aten.broadcast_to), expand),
    aten.expand_as: expand_as,
    **dict.fromkeys((aten.repeat, aten.tile), repeat),
    aten.repeat_interleave: repeat_interleave,
    **dict.fromkeys((aten.cat, aten.concat, aten.concatenate), cat),
    aten.stack: stack,
    aten.split_with_sizes: split,
    **dict.fromkeys((aten.chunk, aten.split, aten.tensor_split, aten.unsafe_chunk, aten.unsafe_split), split_whatever),
    **dict.fromkeys((aten.slice, aten.narrow), cut_out),
    aten.select: select,
    aten.unbind: unbind,
    aten.slice_scatter: write_slice,
    aten.select_scatter: write_position,
    **dict.fromkeys((aten.pad, aten.constant_pad_nd), pad),
    **dict.fromkeys((aten.flip, aten.roll, aten.cumsum, aten.cumprod, aten.sort, aten.argsort), reorder),
    aten.channel_shuffle: shuffle_channels,
}
