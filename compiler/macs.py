"""Multiply-accumulates (MACs) of one call of an operator.

Counted: convolutions (transposed ones too), linear, matrix products (mm, bmm, matmul, addmm, baddbmm, addbmm,
mv, addmv, dot, inner, einsum), scaled_dot_product_attention (both products, not the softmax; a causal mask
saves nothing), lstm, gru, rnn and their cells. Every other op counts 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

Shape = tuple[int, ...]
ShapeOf = Callable[[Any], Shape]
"""The shape of a node's value (of the first tensor, where it has several)."""

aten = torch.ops.aten


def macs(node: fx.Node, shape: ShapeOf) -> int:
    """The multiply-accumulates of ``node``, with the sizes that ``shape`` gives."""
    count = _RULES.get(getattr(node.target, "overloadpacket", None))
    return count(node, shape) if count else 0


def _convolution(node: fx.Node, shape: ShapeOf) -> int:
    return math.prod(shape(node)) * math.prod(shape(node.args[1])[1:])  # weight [out, in / groups, kernel …]


def _transposed_convolution(node: fx.Node, shape: ShapeOf) -> int:
    return math.prod(shape(node.args[0])) * math.prod(shape(node.args[1])[1:])  # weight [in, out / groups, kernel …]


def _any_convolution(node: fx.Node, shape: ShapeOf) -> int:
    return (_transposed_convolution if node.args[6] else _convolution)(node, shape)


def _product(left: int) -> Callable[[fx.Node, ShapeOf], int]:
    """Matrix product with argument ``left`` on the left: each result sums over its last dimension."""
    return lambda node, shape: math.prod(shape(node)) * shape(node.args[left])[-1]


def _sum_of_products(node: fx.Node, shape: ShapeOf) -> int:
    return math.prod(shape(node.args[1])) * shape(node)[-1]


def _attention(node: fx.Node, shape: ShapeOf) -> int:
    query, key, value = (shape(arg) for arg in node.args[:3])
    return math.prod(shape(node)[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(node: fx.Node, shape: ShapeOf) -> int:
    """Each weight matrix meets each row (of each time step) once."""
    weights = [weight for weight in _recurrent_weights(node) if len(shape(weight)) == 2]
    return math.prod(shape(node.args[0])[:-1]) * sum(math.prod(shape(weight)) for weight in weights)


def _recurrent_weights(node: fx.Node) -> Iterator[Any]:
    assert isinstance(node.target, torch._ops.OpOverload)
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        if argument.name in ("params", "w_ih", "w_hh"):
            yield from value if isinstance(value, (tuple, list)) else [value]


def _einsum(node: fx.Node, shape: ShapeOf) -> int:
    """Contracted two by two from the left, as torch.einsum does unless it is given a path."""
    terms, result = einsum_terms(str(node.args[0]), [shape(arg) for arg in node.args[1]])  # type: ignore[union-attr]
    sizes: dict[str, int] = {}
    for names, operand in zip(terms, node.args[1], strict=True):  # type: ignore[arg-type]
        for name, size in zip(names, shape(operand), strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    count, left = 0, {*terms[0]}
    for index, names in enumerate(terms[1:], start=1):
        needed = set(result).union(*terms[index + 1 :])
        right = {*names} & (needed | left)
        left &= needed | right  # what only one operand has, and nobody needs later, is summed before the product
        count += math.prod(sizes[name] for name in left | right)
        left = (left | right) & needed
    return count


def einsum_terms(equation: str, shapes: list[Shape]) -> tuple[list[list[str]], list[str]]:
    """The indices of each operand and of the result; an ellipsis has ``.0``, ``.1`` … from its right."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = given.replace(",", "").replace(".", "")
        result = "..." + "".join(sorted({letter for letter in letters if letters.count(letter) == 1}))
    hidden = [len(shape) - len(term.replace("...", "")) for term, shape in zip(given.split(","), shapes, strict=True)]
    terms = [_letters(term, count) for term, count in zip(given.split(","), hidden, strict=True)]
    return terms, _letters(result, max(hidden))


def _letters(term: str, hidden: int) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *(f".{index}" for index in reversed(range(hidden)) if dots), *after]


_RULES: dict[Any, Callable[[fx.Node, ShapeOf], int]] = {
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), _convolution),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), _transposed_convolution),
    **dict.fromkeys((aten.convolution, aten._convolution), _any_convolution),
    **dict.fromkeys((aten.linear, aten.mm, aten.bmm, aten.matmul, aten.mv, aten.dot, aten.inner), _product(0)),
    **dict.fromkeys((aten.addmm, aten.baddbmm, aten.addmv), _product(1)),
    aten.addbmm: _sum_of_products,
    aten.einsum: _einsum,
    aten.scaled_dot_product_attention: _attention,
    **dict.fromkeys((aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu), _recurrent),
    **dict.fromkeys((aten.lstm_cell, aten.gru_cell, aten.rnn_tanh_cell, aten.rnn_relu_cell), _recurrent),
}
