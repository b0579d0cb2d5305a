"""Coupling rules of the ops that only move values: views, permutations, repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.coupling.dims import Dim, product
from planish.compiler.coupling.inference import Inference, NotUnderstoodError, Rule, Shape, Type, size_of
from planish.compiler.program import arguments

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
    times = [Dim(inference.size(size_of(count))) for count in given[name]]
    for index, count in enumerate(times):
        inference.is_size(node, name, count, index)
    missing = len(times) - len(x)  # on either side: tile repeats the last axes only, if fewer are named
    times = [Dim(1)] * -missing + times
    return tuple(product([count, dim]) for count, dim in zip(times, [Dim(1)] * missing + [*x], strict=True))


def repeat_interleave(node: fx.Node, inference: Inference) -> Shape:
    """[a, b] twice is [a, a, b, b]: size x times."""
    given, x = arguments(node), inference.shape(node.args[0])
    if given.get("dim") is None or not isinstance(given["repeats"], int):
        raise NotUnderstoodError("it repeats by a tensor, or all axes as one")
    axis, times = given["dim"] % len(x), Dim(given["repeats"])
    repeated = product([x[axis], times])
    inference.is_size(node, "repeats", times)
    if given["output_size"] is not None:
        inference.is_size(node, "output_size", repeated)
    return (*x[:axis], repeated, *x[axis + 1 :])


def diagonal(node: fx.Node, inference: Inference) -> Shape:
    given, x = arguments(node), inference.shape(node.args[0])
    axes = {given["dim1"] % len(x), given["dim2"] % len(x)}
    inference.freeze([x[axis] for axis in axes], "its positions are compared", node)
    rest = [dim for axis, dim in enumerate(x) if axis not in axes]
    return (*rest, *inference.frozen(inference.sizes(node)[-1:], "its positions are compared", node))


def reorder(node: fx.Node, inference: Inference) -> Type:
    """flip, roll, cumsum, sort, argsort …: the position counts along the named axes, all if none is named."""
    given, x = arguments(node), inference.shape(node.args[0])
    named = given.get("dims", given.get("dim"))
    axes = range(len(x)) if named is None or named == [] else [named] if isinstance(named, int) else named
    for axis in axes if x else ():
        inference.freeze([x[axis]], "the order along it counts", node)
    value = node.meta["val"]
    return x if isinstance(value, Tensor) else [x for _ in value]


def rotate(node: fx.Node, inference: Inference) -> Shape:
    """``rot90``: two axes are reversed, and change places at odd multiples."""
    given, shape = arguments(node), [*inference.shape(node.args[0])]
    first, second = given["dims"]
    inference.freeze([shape[first], shape[second]], "the order along it counts", node)
    if given["k"] % 2:
        shape[first], shape[second] = shape[second], shape[first]
    return tuple(shape)


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
    **dict.fromkeys((aten.flip, aten.roll, aten.cumsum, aten.cumprod, aten.sort, aten.argsort), reorder),
    **dict.fromkeys((aten.logcumsumexp, aten.cummax, aten.cummin), reorder),
    aten.rot90: rotate,
    aten.diagonal: diagonal,
    aten.channel_shuffle: shuffle_channels,
}
