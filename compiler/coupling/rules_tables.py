"""Coupling rules of the ops that look values up or make them: embeddings, indexing, factories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from planish.compiler.coupling.dims import Dim
from planish.compiler.coupling.inference import Inference, NotUnderstoodError, Rule, Shape, Type
from planish.compiler.program import arguments

aten = torch.ops.aten


def embedding(node: fx.Node, inference: Inference) -> Shape:
    given = arguments(node)
    table, rows = inference.shape(given["weight"]), inference.shape(given["indices"])
    inference.freeze(table[:1], "its rows are looked up", node)
    return (*rows, *table[1:])


def embedding_bag(node: fx.Node, inference: Inference) -> Type:
    """Rows are summed; only the first result is used by models."""
    table = inference.shape(arguments(node)["weight"])
    inference.freeze(table[:1], "its rows are looked up", node)
    first, *others = node.meta["val"]
    bags = inference.frozen([inference.size(first.shape[0])], "it numbers bags", node)
    sizes = [[inference.size(size) for size in other.shape] for other in others]
    return [(*bags, table[1]), *(inference.frozen(each, "it numbers rows", node) for each in sizes)]


def index(node: fx.Node, inference: Inference) -> Shape:
    """x[:, i, j]: indexed axes stay; what the indices broadcast to stands in their place, or in front."""
    given = arguments(node)
    x, indices = inference.shape(given["self"]), [*given["indices"]]
    shape = [dim for dims in _looked_up(inference, node, x, indices) for dim in dims]
    counted = inference.frozen(inference.sizes(node), "it numbers what a mask leaves", node)
    return tuple(dim if dim.size == count.size else count for dim, count in zip(shape, counted, strict=True))


def index_put(node: fx.Node, inference: Inference) -> Shape:
    """x[:, i, j] = values. What is written stays: without a position, x would keep its old value there."""
    given = arguments(node)
    x, indices = inference.shape(given["self"]), [*given["indices"]]
    before, positions, behind = _looked_up(inference, node, x, indices)
    values = inference.broadcast([(*before, *positions, *behind), inference.shape(given["values"])])
    if not given["accumulate"] or any(map(_is_mask, indices)):
        end = len(values) - len(behind)
        inference.freeze(values[end - len(positions) : end], "it is written to positions", node)
    return x


def _looked_up(inference: Inference, node: fx.Node, x: Shape, indices: list[Any]) -> tuple[Shape, Shape, Shape]:
    """The result: axes before the indices, what these broadcast to, and axes behind. A mask leaves a count: size 1."""
    shapes: list[Shape | None] = []
    for tensor in indices:
        shape = None if tensor is None else inference.shape(tensor)
        if shape is not None and _is_mask(tensor):
            inference.unify_shapes(x[len(shapes) : len(shapes) + len(shape)], shape)
            shapes += [(Dim(1),)] * len(shape)
        else:
            shapes.append(shape)
    axes = [axis for axis, shape in enumerate(shapes) if shape is not None]
    inference.freeze([x[axis] for axis in axes], "its rows are looked up", node)
    together = axes == [*range(axes[0], axes[-1] + 1)]
    first = axes[0] if together else 0
    others = tuple(dim for axis, dim in enumerate(x) if axis not in axes)
    return others[:first], inference.broadcast([shape for shape in shapes if shape is not None]), others[first:]


def _is_mask(tensor: fx.Node | None) -> bool:
    return tensor is not None and tensor.meta["val"].dtype in (torch.bool, torch.uint8)


def index_select(node: fx.Node, inference: Inference) -> Shape:
    given, x = arguments(node), inference.shape(node.args[0])
    axis = given["dim"] % len(x)
    inference.freeze([x[axis]], "its rows are looked up", node)
    return (*x[:axis], *inference.shape(given["index"]), *x[axis + 1 :])


def write_rows(node: fx.Node, inference: Inference) -> Shape:
    """index_add, index_copy: rows of the axis are written; a source row has the other axes."""
    given, x = arguments(node), inference.shape(node.args[0])
    axis, source = given["dim"] % len(x), inference.shape(given["source"])
    inference.freeze([x[axis]], "its rows are looked up", node)
    inference.unify_shapes((*x[:axis], *x[axis + 1 :]), (*source[:axis], *source[axis + 1 :]))
    inference.broadcast([source[axis : axis + 1], inference.shape(given["index"])])
    if node.target is aten.index_copy.default:
        inference.freeze([source[axis]], "it is written to positions", node)
    return x


def fill_rows(node: fx.Node, inference: Inference) -> Shape:
    """``index_fill`` with a number."""
    given, x = arguments(node), inference.shape(node.args[0])
    inference.freeze([x[given["dim"]]], "its rows are looked up", node)
    return x


def sorted_into(node: fx.Node, inference: Inference) -> Shape:
    """bucketize, searchsorted: the place of each value between boundaries."""
    given = arguments(node)
    boundaries = inference.shape(given.get("boundaries", given.get("sorted_sequence")))
    if len(boundaries) > 1:
        raise NotUnderstoodError("each row has boundaries of its own")
    inference.freeze(boundaries, "its positions are numbered", node)
    return inference.shape(given["self"])


def gather(node: fx.Node, inference: Inference) -> Shape:
    """The result has the Shape of the index; axes but the one that is looked up are equal."""
    given, x = arguments(node), inference.shape(node.args[0])
    positions = inference.shape(given["index"])
    for axis, (dim, position) in enumerate(zip(x, positions, strict=True)):
        if axis == given["dim"] % len(x):
            inference.freeze([dim], "its positions are looked up", node)
        elif dim.size == position.size:
            inference.unify(dim, position)
        else:
            inference.freeze([dim, position], "its first positions are looked up", node)
    return positions


def take_along_axis(node: fx.Node, inference: Inference) -> Shape:
    """``gather`` whose axes broadcast."""
    given, x = arguments(node), inference.shape(node.args[0])
    positions = inference.shape(given["indices"])
    if given["dim"] is None:
        raise NotUnderstoodError("it looks up in all axes as one")
    axis = given["dim"] % len(x)
    inference.freeze([x[axis]], "its positions are looked up", node)
    others = inference.broadcast([(*x[:axis], *x[axis + 1 :]), (*positions[:axis], *positions[axis + 1 :])])
    return (*others[:axis], positions[axis], *others[axis:])


def scatter(node: fx.Node, inference: Inference) -> Shape:
    """What ``gather`` reads is written. It stays: without a position, x would keep its old value there."""
    scatter_add(node, inference)
    given, x = arguments(node), inference.shape(node.args[0])
    inference.freeze([inference.shape(given["index"])[given["dim"] % len(x)]], "it is written to positions", node)
    return x


def scatter_add(node: fx.Node, inference: Inference) -> Shape:
    given = arguments(node)
    positions = gather(node, inference)
    for position, source in zip(positions, inference.shape(given.get("src")), strict=False):
        if position.size == source.size:
            inference.unify(position, source)
        else:
            inference.freeze([position, source], "its first positions are written", node)
    return inference.shape(node.args[0])


def one_hot(node: fx.Node, inference: Inference) -> Shape:
    x = inference.shape(node.args[0])
    return (*x, *inference.frozen(inference.sizes(node)[-1:], "it numbers classes", node))


def counted(node: fx.Node, inference: Inference) -> Shape:
    """histc, bincount, nonzero, masked_select: how many values there are of a kind, or those. All of them stay."""
    for argument in node.all_input_nodes:
        inference.freeze(inference.shape(argument), "its values are counted", node)
    return inference.frozen(inference.sizes(node), "it counts values", node)


def meshgrid(node: fx.Node, inference: Inference) -> Type:
    """Each result has an axis for each argument."""
    given = arguments(node)
    axes = [(*inference.shape(tensor), Dim(1))[0] for tensor in given["tensors"]]  # a number is one position
    if given.get("indexing") == "xy":
        axes[:2] = reversed(axes[:2])
    return [tuple(axes) for _ in axes]


def filled(node: fx.Node, inference: Inference) -> Shape:
    """zeros, full, rand …: any size will do; it is written out."""
    given = arguments(node)
    if "size" not in given:  # normal, around each value of a tensor
        return inference.broadcast([inference.shape(argument) for argument in node.all_input_nodes])
    result = inference.fresh(node)
    _is_shape(node, inference, given["size"], result)
    return result


def _is_shape(node: fx.Node, inference: Inference, sizes: Sequence[Any], dims: Sequence[Dim]) -> None:
    for element, (_, dim) in enumerate(zip(sizes, dims, strict=True)):
        inference.is_size(node, "size", dim, element)


def numbered(node: fx.Node, inference: Inference) -> Shape:
    """arange, eye, linspace: values that follow from positions."""
    return inference.frozen(inference.sizes(node), "its values number positions", node)


_FILLED = (
    aten.zeros, aten.ones, aten.full, aten.empty, aten.rand, aten.randn, aten.normal,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty,
)  # fmt: skip
_NUMBERED = (
    aten.arange, aten.eye, aten.linspace, aten.logspace, aten.scalar_tensor, aten.randperm, aten.tril_indices,
    aten.triu_indices, aten.hann_window, aten.hamming_window, aten.blackman_window, aten.randint,
)  # fmt: skip

RULES: dict[Any, Rule] = {
    aten.embedding: embedding,
    **dict.fromkeys((aten.embedding_bag, aten._embedding_bag), embedding_bag),
    **dict.fromkeys((aten.index, aten._unsafe_index), index),
    aten.index_select: index_select,
    **dict.fromkeys((aten.index_put, aten._unsafe_index_put), index_put),
    **dict.fromkeys((aten.index_add, aten.index_copy), write_rows),
    aten.index_fill: fill_rows,
    **dict.fromkeys((aten.bucketize, aten.searchsorted), sorted_into),
    aten.gather: gather,
    aten.take_along_dim: take_along_axis,
    aten.scatter_add: scatter_add,
    **dict.fromkeys((aten.scatter, aten.scatter_reduce), scatter),
    aten.one_hot: one_hot,
    **dict.fromkeys((aten.histc, aten.bincount, aten.nonzero, aten.masked_select), counted),
    aten.meshgrid: meshgrid,
    **dict.fromkeys(_FILLED, filled),
    **dict.fromkeys(_NUMBERED, numbered),
}
