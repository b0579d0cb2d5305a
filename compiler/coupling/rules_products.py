"""Coupling rules of the ops that multiply: convolutions, matrix products, attention, recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from planish.compiler.coupling.dims import Dim, concatenation, product
from planish.compiler.coupling.inference import Inference, NotUnderstoodError, Rule, Shape, Type, size_of
from planish.compiler.macs import einsum_terms
from planish.compiler.program import arguments

aten = torch.ops.aten


def convolution(node: fx.Node, inference: Inference) -> Shape:
    """x.C = groups x w1, w0 = groups x c_out; the result has w0 channels."""
    given = arguments(node)
    x, weight = inference.shape(given["input"]), inference.shape(given["weight"])
    axis = len(x) - len(weight) + 1
    groups = _groups(node, inference)
    inference.unify(x[axis], product([groups, weight[1]]))
    inference.unify(weight[0], product([groups, Dim(weight[0].size // groups.size)]))
    return _convolved(node, inference, given, groups, weight[0], axis)


def transposed_convolution(node: fx.Node, inference: Inference) -> Shape:
    """x.C = w0 = groups x c_in; the result has groups x w1 channels."""
    given = arguments(node)
    x, weight = inference.shape(given["input"]), inference.shape(given["weight"])
    axis = len(x) - len(weight) + 1
    groups = _groups(node, inference)
    inference.unify(x[axis], weight[0])
    inference.unify(weight[0], product([groups, Dim(weight[0].size // groups.size)]))
    return _convolved(node, inference, given, groups, product([groups, weight[1]]), axis)


def any_convolution(node: fx.Node, inference: Inference) -> Shape:
    return (transposed_convolution if arguments(node)["transposed"] else convolution)(node, inference)


def _groups(node: fx.Node, inference: Inference) -> Dim:
    groups = arguments(node)["groups"]
    if isinstance(groups, int):
        return Dim(groups)
    return inference.frozen([inference.size(size_of(groups))], "it is a number of groups that is computed", node)[0]


def _convolved(
    node: fx.Node, inference: Inference, given: dict[str, Any], groups: Dim, channels: Dim, axis: int
) -> Shape:
    x, weight, bias = (inference.shape(given[name]) for name in ("input", "weight", "bias"))
    if isinstance(given["groups"], int) and groups.size > 1:
        inference.is_size(node, "groups", groups)
    if bias:
        inference.unify(bias[0], channels)
    kernel = weight[2:]
    inference.freeze(kernel, "it is the size of a kernel", node)
    sizes = inference.sizes(node)[axis + 1 :]
    strides = _each(given["stride"], len(kernel))
    pads = _each(given["padding"], len(kernel))
    pixels = [
        _pixel(inference, node, *measures)
        for measures in zip(x[axis + 1 :], sizes, (dim.size for dim in kernel), strides, pads, strict=True)
    ]
    return (*x[:axis], channels, *pixels)


def _pixel(inference: Inference, node: fx.Node, dim: Dim, size: int, kernel: int, stride: int, pad: Any) -> Dim:
    """A kernel of 1 without stride and padding leaves positions alone: features may stand there."""
    if kernel == 1 and stride == 1 and pad in (0, "valid", "same"):
        return dim
    inference.freeze([dim], "it is a position for a kernel", node)
    return inference.frozen([size], "it is a position", node)[0]


def _each(value: Any, count: int) -> list[Any]:
    listed = [*value] if isinstance(value, (list, tuple)) else [value]
    return listed * count if len(listed) == 1 else listed


def linear(node: fx.Node, inference: Inference) -> Shape:
    given = arguments(node)
    x, weight, bias = (inference.shape(given[name]) for name in ("input", "weight", "bias"))
    inference.unify(x[-1], weight[-1])
    if bias:
        inference.unify(bias[0], weight[0])
    return (*x[:-1], *weight[:-1])


def matrix_product(node: fx.Node, inference: Inference) -> Shape:
    left, right = (inference.shape(argument) for argument in node.args[:2])
    return multiplied(inference, left, right)


def added_matrix_product(node: fx.Node, inference: Inference) -> Shape:
    """Of bias + left @ right, for addmm, baddbmm and addmv."""
    bias, left, right = (inference.shape(argument) for argument in node.args[:3])
    return inference.broadcast([multiplied(inference, left, right), bias])


def multiplied(inference: Inference, left: Shape, right: Shape) -> Shape:
    """The Shape of ``left @ right``: the inner dimensions are equal, those of batches broadcast."""
    inference.unify(left[-1], right[max(len(right) - 2, 0)])
    batch = inference.broadcast([left[:-2], right[:-2]]) if len(left) > 2 or len(right) > 2 else ()
    return (*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))


def einsum(node: fx.Node, inference: Inference) -> Shape:
    """Equal letters are equal dimensions; an ellipsis broadcasts."""
    operands = [inference.shape(operand) for operand in node.args[1]]  # type: ignore[union-attr]
    terms, result = einsum_terms(str(node.args[0]), [tuple(dim.size for dim in shape) for shape in operands])
    columns: dict[str, list[Dim]] = {}
    for names, shape in zip(terms, operands, strict=True):
        for name, dim in zip(names, shape, strict=True):
            columns.setdefault(name, []).append(dim)
    dims = {name: inference.broadcast([[dim] for dim in column])[0] for name, column in columns.items()}
    return tuple(dims[name] for name in result)


def outer_product(node: fx.Node, inference: Inference) -> Shape:
    left, right = (inference.shape(argument) for argument in node.args[:2])
    return (*left, *right)


def tensor_product(node: fx.Node, inference: Inference) -> Shape:
    """``tensordot`` over the named axes; ``inner`` over the last ones."""
    given = arguments(node)
    left, right = (inference.shape(argument) for argument in node.args[:2])
    over_left = {axis % len(left) for axis in given.get("dims_self", [-1])}
    over_right = {axis % len(right) for axis in given.get("dims_other", [-1])}
    for first, second in zip(given.get("dims_self", [-1]), given.get("dims_other", [-1]), strict=True):
        inference.unify(left[first], right[second])
    kept_left = tuple(dim for axis, dim in enumerate(left) if axis not in over_left)
    return (*kept_left, *(dim for axis, dim in enumerate(right) if axis not in over_right))


def distances(node: fx.Node, inference: Inference) -> Shape:
    """``cdist``: between all rows of both, over their last axis."""
    left, right = (inference.shape(argument) for argument in node.args[:2])
    inference.unify(left[-1], right[-1])
    return (*inference.broadcast([left[:-2], right[:-2]]), left[-2], right[-2])


def grouped_product(node: fx.Node, inference: Inference) -> Shape:
    """Mixtures of experts: rows [T, K] meet the matrix of their expert in [experts, K, N]."""
    rows, matrices = (inference.shape(argument) for argument in node.args[:2])
    if (len(rows), len(matrices)) != (2, 3):
        raise NotUnderstoodError("it groups other axes than rows")
    inference.freeze(matrices[:1], "it numbers experts", node)
    inference.unify(rows[1], matrices[1])
    return (rows[0], matrices[2])


def attention(node: fx.Node, inference: Inference) -> Shape:
    """Queries and keys have one width, keys and values one length. Grouped queries: heads of q = heads of k x rep.

    The width of the heads may be cut: ``normalize`` has made the scale explicit, so that it stays.
    """
    given = arguments(node)
    query, key, value = (inference.shape(given[name]) for name in ("query", "key", "value"))
    mask = inference.shape(given["attn_mask"])
    inference.unify(query[-1], key[-1])
    inference.unify(key[-2], value[-2])
    inference.unify_shapes(key[:-2], value[:-2])
    inference.freeze([key[-2]], "attention is spread over it", node)
    if given["is_causal"]:
        inference.freeze([query[-2]], "its positions are compared", node)
    if given["enable_gqa"]:
        repeated = Dim(query[-3].size // key[-3].size)
        inference.unify(query[-3], product([key[-3], repeated]))
        batch = (*inference.broadcast([query[:-3], key[:-3]]), query[-3])
    else:
        batch = inference.broadcast([query[:-2], key[:-2]])
    if mask:
        inference.broadcast([(*batch, query[-2], key[-2]), mask])
    return (*batch, query[-2], value[-1])


def bilinear(node: fx.Node, inference: Inference) -> Shape:
    left, right, weight, bias = (inference.shape(argument) for argument in (*node.args, None)[:4])
    inference.unify(left[-1], weight[1])
    inference.unify(right[-1], weight[2])
    if bias:
        inference.unify(bias[0], weight[0])
    return (*inference.broadcast([left[:-1], right[:-1]]), weight[0])


# ---------------------------------------------------------------------- recurrent layers


def recurrent(gates: int, states: int) -> Rule:
    """All layers and directions have one hidden size H, because one initial state holds them all."""

    def rule(node: fx.Node, inference: Inference) -> Type:
        given = arguments(node)
        if "batch_sizes" in given:
            raise NotUnderstoodError("it reads packed sequences")
        x, weights = inference.shape(given["input"]), [inference.shape(weight) for weight in given["params"]]
        initial = given["hx"] if states == 2 else [given["hx"]]
        state = weights[1][1]  # what goes around: H, or a projection of it
        projected = weights[1][0].size != gates * state.size
        hidden = Dim(weights[1][0].size // gates) if projected else state
        if projected:  # PyTorch takes no projection as wide as H: H stays
            inference.freeze([hidden], "its projection has to be narrower", node)
        directions = 2 if given["bidirectional"] else 1
        per_layer = (4 if given["has_biases"] else 2) + projected
        reads = x[-1]
        for layer in range(given["num_layers"]):
            for direction in range(directions):
                start = (layer * directions + direction) * per_layer
                of_layer = weights[start : start + per_layer]
                if projected:
                    inference.unify_shapes(of_layer.pop(), (state, hidden))
                _recurrent_layer(node, inference, of_layer, gates, hidden, state, reads)
            reads = concatenation([state] * directions)
        for first, width in zip(initial, (state, hidden), strict=False):
            inference.freeze(inference.shape(first)[:1], "it numbers layers", node)
            inference.unify(inference.shape(first)[-1], width)
        stack = inference.frozen([given["num_layers"] * directions], "it numbers layers", node)
        batch = x[0] if given["batch_first"] else x[1]
        ends: list[Type] = [(*stack, batch, width) for width in (state, hidden)[:states]]
        return [(*x[:-1], reads), *ends]

    return rule


def _recurrent_layer(
    node: fx.Node, inference: Inference, weights: Sequence[Shape], gates: int, hidden: Dim, state: Dim, reads: Dim
) -> None:
    of_gates = inference.frozen([gates], "it numbers gates", node)[0]
    for weight in weights:
        inference.unify(weight[0], product([of_gates, hidden]))
    inference.unify(weights[0][1], reads)
    inference.unify(weights[1][1], state)


def recurrent_cell(gates: int, states: int) -> Rule:
    def rule(node: fx.Node, inference: Inference) -> Type:
        given = arguments(node)
        names = ("w_ih", "w_hh", "b_ih", "b_hh")
        weights = [inference.shape(given[name]) for name in names if given[name] is not None]
        x = inference.shape(given["input"])
        hidden = Dim(weights[1][0].size // gates)
        _recurrent_layer(node, inference, weights, gates, hidden, hidden, x[-1])
        result = (*x[:-1], hidden)
        for first in given["hx"] if states == 2 else [given["hx"]]:
            inference.broadcast([inference.shape(first), result])
        return [result, result] if states == 2 else result

    return rule


RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), convolution),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), transposed_convolution),
    **dict.fromkeys((aten.convolution, aten._convolution), any_convolution),
    aten.linear: linear,
    **dict.fromkeys((aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot, aten.vdot), matrix_product),
    **dict.fromkeys((aten.addmm, aten.baddbmm, aten.addmv), added_matrix_product),
    **dict.fromkeys((aten.outer, aten.ger), outer_product),
    **dict.fromkeys((aten.tensordot, aten.inner), tensor_product),
    aten.cdist: distances,
    aten._grouped_mm: grouped_product,
    "transformers::grouped_mm_fallback": grouped_product,  # transformers' own op for mixtures of experts
    aten.einsum: einsum,
    aten.scaled_dot_product_attention: attention,
    aten.bilinear: bilinear,
    aten.lstm: recurrent(gates=4, states=2),
    aten.gru: recurrent(gates=3, states=1),
    **dict.fromkeys((aten.rnn_tanh, aten.rnn_relu), recurrent(gates=1, states=1)),
    aten.lstm_cell: recurrent_cell(gates=4, states=2),
    aten.gru_cell: recurrent_cell(gates=3, states=1),
    **dict.fromkeys((aten.rnn_tanh_cell, aten.rnn_relu_cell), recurrent_cell(gates=1, states=1)),
}
