"""Six and more dimensions on five: the rewritten graph against PyTorch, any permutation and any broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.backends.to_coreml.checks import CHECKS
from planish.backends.to_coreml.ranks import MAX_RANK
from planish.backends.to_coreml.rewrites import rewrite
from planish.compiler.inputs import Inputs
from planish.compiler.shapes import ensure_shapes
from planish.compiler.trace import trace
from tests.backends.to_onnx.family_base import Function

SHAPES = st.lists(st.integers(1, 3), min_size=6, max_size=8)


def assert_rewritten(function: Callable[..., Any], *inputs: Tensor) -> None:
    """Same values for a batch of 3 after a trace with 2, and nowhere more than five dimensions."""
    model = function if isinstance(function, nn.Module) else Function(lambda self, *args: function(*args))
    program = trace(model.eval(), Inputs(tuple(each[:2] for each in inputs)))
    high = [node for node in program.graph.nodes if _rank(node) > MAX_RANK]
    assert high, "the trace has no dimension too many to begin with"
    few = rewrite(program)
    ensure_shapes(few)
    left = [node for node in few.graph.nodes if node.op == "call_function" and _rank(node) > MAX_RANK]
    assert not left, [node.format_node() for node in left]
    wanted, got = function(*inputs), few(*inputs)
    for a, b in zip(*([each] if isinstance(each, Tensor) else each for each in (wanted, got)), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12, equal_nan=True)


def _rank(node: Any) -> int:
    value = node.meta.get("val")
    return max((each.ndim for each in (value if isinstance(value, (list, tuple)) else [value])
                if isinstance(each, Tensor)), default=0)  # fmt: skip


def draw(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def on(shape: list[int], function: Callable[[Tensor], Any]) -> None:
    """``function`` of a tensor [batch, *shape], from one with two dimensions and back."""

    def whole(x: Tensor) -> Any:
        made = function(x.reshape(x.shape[0], *shape))
        made = (made,) if isinstance(made, Tensor) else tuple(made)
        return tuple(each.reshape(-1) for each in made)

    assert_rewritten(whole, draw(math.prod(shape)))


@settings(max_examples=12, deadline=None)
@given(st.data(), SHAPES)
def test_any_permutation_of_any_rank_is_done_on_five_dimensions(data: st.DataObject, shape: list[int]) -> None:
    order = data.draw(st.permutations(range(len(shape) + 1)))
    on(shape, lambda x: x.permute(order))


@settings(max_examples=6, deadline=None)
@given(st.data(), SHAPES)
def test_elementwise_operators_broadcast_as_on_many_dimensions(data: st.DataObject, shape: list[int]) -> None:
    kept = [data.draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape))) for _ in range(2)]
    small = [[size if keep else 1 for size, keep in zip(shape, each, strict=True)] for each in kept]

    def function(x: Tensor) -> Tensor:
        cut = [flat(x)[:, : math.prod(each)].reshape(-1, *each) for each in small]
        return torch.where(x > 0, x * cut[0], cut[1]) + x * x

    on(shape, function)


OPERATORS: dict[str, Callable[[Tensor, int], Any]] = {
    "unary": lambda x, dim: (F.gelu(x), F.dropout(x, training=False), x.clamp(-1, 1), torch.zeros_like(x) - x, x.int()),
    "moves": lambda x, dim: (x.movedim(dim, 1), x.transpose(dim, -1), x.flip(dim), x.roll((1, -1), (1, dim))),
    "views": lambda x, dim: (x.unsqueeze(dim), x.squeeze(), x.flatten(dim), x.contiguous().unsqueeze(-1)),
    "softmax": lambda x, dim: (x.softmax(dim), x.log_softmax(dim), x.cumsum(dim)),
    "slices": lambda x, dim: (x.narrow(dim, 0, 1), x.select(dim, -1), x.index_select(dim, torch.tensor([0, 0]))),
    "parts": lambda x, dim: (*x.unbind(dim), *x.chunk(2, dim), *x.split(1, dim)),
    "joins": lambda x, dim: (torch.cat([x, -x], dim), torch.stack([x, 2 * x], dim), x.repeat_interleave(2, dim)),
    "bests": lambda x, dim: (*x.max(dim), x.argmax(dim), x.topk(1, dim)[0], x.sort(dim)[0]),
    "reductions": lambda x, dim: (x.sum(dim), x.mean((1, 3, dim) if dim not in (1, 3) else dim, keepdim=True),
                                  x.amax((2, 4)), x.var((1, 3, 5), correction=0), x.logsumexp((1, 5))),
    "rows": lambda x, dim: (F.linear(x, torch.ones(2, x.shape[-1], dtype=x.dtype)), F.layer_norm(x, x.shape[-2:]),
                            x @ torch.ones(x.shape[-1], 4, dtype=x.dtype), x @ torch.ones(x.shape[-1], dtype=x.dtype)),
    "matrices": lambda x, dim: (x @ x.mT, x @ x[:, :1].mT, F.scaled_dot_product_attention(x, x, x)),
    "expansions": lambda x, dim: (x.unsqueeze(dim).expand(*[-1] * dim, 3, *[-1] * (x.ndim - dim)), x.unfold(dim, 1, 1)),
    "sizes": lambda x, dim: x.reshape(x.shape[0] * x.shape[1], -1),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=3, deadline=None)
@given(st.data(), SHAPES)
def test_an_operator_gives_the_same_on_few_dimensions(name: str, data: st.DataObject, shape: list[int]) -> None:
    dim = data.draw(st.integers(1, len(shape)))
    on(shape, lambda x: OPERATORS[name](x, dim))


def test_a_table_of_many_dimensions_is_a_weight_as_any_other() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(2, 1, 2, 1, 2, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (x.reshape(-1, 2, 2, 2, 2, 2, 3) * self.table).sum((2, 4))

    assert_rewritten(Weighted(), draw(96))


def test_only_an_input_of_too_many_dimensions_is_refused() -> None:
    (check,) = (each for each in CHECKS if each.name == "rank-at-most-5")

    def offenders(function: Callable[[Tensor], Tensor], *shape: int) -> list[str]:
        program = trace(Function(lambda self, x: function(x)).eval(), Inputs((draw(*shape)[:2],)))
        return [node.op for node in check.offenders(program)]

    assert offenders(lambda x: x.sum((1, 3, 5)), 2, 2, 2, 2, 2) == ["placeholder"]
    assert offenders(lambda x: x.reshape(-1, 2, 2, 2, 2, 2).sum((1, 3, 5)), 32) == []
