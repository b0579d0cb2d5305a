"""Coupling rules of the ops that look values up or make them: embeddings, indexing, factories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from planish.compiler.coupling.dims import Dim
from planish.compiler.coupling.inference import Inference, NotUnderstoodError, Rule, Shape, Type, arguments

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
    x, indices = inference.shape(node.args[0]), [*node.args[1]]  # type: ignore[misc]
    for tensor in indices:
        if isinstance(tensor, fx.Node) and tensor.meta["val"].dtype in (torch.bool, torch.uint8):
            raise NotUnderstoodError("it is indexed by a mask")
    indices += [None] * (len(x) - len(indices))
    axes = [axis for axis, tensor in enumerate(indices) if tensor is not None]
    inference.freeze([x[axis] for axis in axes], "its rows are looked up", node)
    looked_up = inference.broadcast([inference.shape(indices[axis]) for axis in axes])
    together = axes == [*range(axes[0], axes[-1] + 1)]
    first = axes[0] if together else 0
    others = [dim for axis, dim in enumerate(x) if axis not in axes]
    return (*others[:first], *looked_up, *others[first:])


def index_select(node: fx.Node, inference: Inference) -> Shape:
    given, x = arguments(node), inference.shape(node.args[0])
    axis = given["dim"] % len(x)
    inference.freeze([x[axis]], "its rows are looked up", node)
    return (*x[:axis], *inference.shape(given["index"]), *x[axis + 1 :])


def gather(node: fx.Node, inference: Inference) -> Shape:
    given, x = arguments(node), inference.shape(node.args[0])
    positions = inference.shape(given["index"])
    for axis, (dim, position) in enumerate(zip(x, positions, strict=True)):
        if axis == given["dim"] % len(x):
            inference.freeze([dim], "its positions are looked up", node)
        else:
            inference.unify(dim, position)
    return positions


def one_hot(node: fx.Node, inference: Inference) -> Shape:
    x = inference.shape(node.args[0])
    return (*x, *inference.frozen(inference.sizes(node)[-1:], "it numbers classes", node))


def filled(node: fx.Node, inference: Inference) -> Shape:
    """zeros, full, rand …: any size will do; it is written out."""
    given = arguments(node)
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
    aten.zeros, aten.ones, aten.full, aten.empty, aten.rand, aten.randn,
    aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty,
)  # fmt: skip
_NUMBERED = (
    aten.arange, aten.eye, aten.linspace, aten.logspace, aten.scalar_tensor, aten.randperm, aten.tril_indices,
    aten.triu_indices, aten.hann_window, aten.hamming_window, aten.randint,
)  # fmt: skip

RULES: dict[Any, Rule] = {
    aten.embedding: embedding,
    **dict.fromkeys((aten.embedding_bag, aten._embedding_bag), embedding_bag),
    aten.index: index,
    aten.index_select: index_select,
    aten.gather: gather,
    aten.one_hot: one_hot,
    **dict.fromkeys(_FILLED, filled),
    **dict.fromkeys(_NUMBERED, numbered),
}
