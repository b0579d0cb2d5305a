"""Rules against PyTorch, with LiteRT as what computes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("ai_edge_litert")
from planish.backends.to_tflite.emitter import Unsupported
from planish.compiler.errors import LoweringError
from tests.backends.to_tflite.oracle import assert_rule_agrees, converted, kinds

IMAGE = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(0))


Form = Callable[[Tensor], Tensor]
AT_ONCE = 4
"""Forms in one file: most of the time goes into tracing and loading it."""


@st.composite
def convolutions(draw: st.DrawFn) -> Form:
    groups = draw(st.sampled_from([1, 2, 4]))
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2)) if stride == 1 else 1
    padding = draw(st.one_of(st.integers(0, 3), st.just("valid"), st.just("same") if stride == 1 else st.just(1)))
    bias = torch.randn(8) if draw(st.booleans()) else None
    weight = torch.randn(8, 4 // groups, kernel, draw(st.integers(1, 3)))
    return lambda x: F.relu(F.conv2d(x, weight, bias, stride, padding, dilation, groups))  # type: ignore[call-overload]


@st.composite
def pools(draw: st.DrawFn) -> Form:
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.integers(0, min(kernel) // 2))
    stride, ceil, include = draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans())
    if draw(st.booleans()):
        return lambda x: F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)
    return lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, include)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> Form:
    groups, stride, kernel = draw(st.sampled_from([1, 2])), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dilation = draw(st.integers(1, 2))
    padding = draw(st.integers(0, min(2, dilation * (kernel - 1))))
    more = draw(st.integers(0, stride - 1))
    weight, bias = torch.randn(4, 3, kernel, kernel), torch.ones(3 * groups)
    return lambda x: F.conv_transpose2d(x, weight, bias, stride, padding, more, groups, dilation)


@pytest.mark.parametrize("forms", [convolutions(), pools(), transposed_convolutions()], ids=lambda forms: str(forms))
@settings(max_examples=8)
@given(data=st.data())
def test_windows_of_any_form_agree(forms: st.SearchStrategy[Form], data: st.DataObject) -> None:
    drawn = data.draw(st.lists(forms, min_size=AT_ONCE, max_size=AT_ONCE))
    assert_rule_agrees(lambda x: tuple(form(x) for form in drawn), IMAGE)


@settings(max_examples=10)
@given(
    st.lists(
        st.lists(st.deferred(lambda: st.sampled_from(sorted(MOVES))), min_size=1, max_size=6), min_size=3, max_size=3
    )
)
def test_chains_of_moves_agree(chains: list[list[str]]) -> None:
    """Transposes, reshapes, slices and sums in any order: the lazy orders must never mix dimensions up."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        image = F.conv2d(x, torch.ones(4, 4, 1, 1))
        return tuple(functools.reduce(lambda y, step: MOVES[step](y), chain, image) for chain in chains)

    assert_rule_agrees(function, IMAGE)


MOVES: dict[str, Callable[[Any], Any]] = {
    "swap": lambda x: x.transpose(-1, -2),
    "turn": lambda x: x.permute(*range(1, x.ndim), 0),
    "flatten": lambda x: x.flatten(1),
    "cut": lambda x: x[..., 1:] if x.shape[-1] > 2 else x,
    "stride": lambda x: x[..., ::2] if x.shape[-1] > 2 else x,
    "lift": lambda x: x.unsqueeze(1) if x.ndim < 4 else x,
    "sum": lambda x: x + x.sum(-1, keepdim=True),
    "mean": lambda x: x.mean(0) if x.ndim > 2 else x,
    "join": lambda x: torch.cat([x, x * 2], -1),
    "pad": lambda x: F.pad(x, (1, 2)),
    "split": lambda x: x.reshape(*x.shape[:-1], 2, -1) if x.shape[-1] % 2 == 0 and x.ndim < 4 else x,
    "softmax": lambda x: x.softmax(0),
    "product": lambda x: x @ x.transpose(-1, -2) if x.ndim > 1 else x,
    "vector": lambda x: x + torch.arange(x.shape[-1]).float(),
    "roll": lambda x: x.roll(1, -1),
}

WEIGHT = torch.randn(4, 4)
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "negative indices": (lambda x: x[:, torch.tensor([-1, 0])], (torch.randn(2, 4),)),
    "indices that are computed": (lambda x, i: x[i], (torch.randn(5, 3), torch.tensor([[-1, 2], [0, 4]]))),
    "gather": (lambda x, i: x.gather(1, i), (torch.randn(3, 4), torch.tensor([[0, 3], [1, 1], [2, 0]]))),
    "scatter_add": (
        lambda x, i: x.scatter_add(1, i, x),
        (torch.randn(3, 4), torch.tensor([[0, 3, 0, 0], [1, 1, 1, 1], [2, 0, 1, 3]])),
    ),
    "topk": (lambda x: x.topk(2, 1), (torch.randn(3, 5, 2),)),
    "smallest": (lambda x: x.topk(2, -1, largest=False), (torch.randn(3, 5),)),
    "masked attention": (
        lambda q: F.scaled_dot_product_attention(q, q, q, q[0, 0] @ q[0, 0].t() > 0),
        (torch.randn(2, 3, 4, 8),),
    ),
    "causal attention": (
        lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True),
        (torch.randn(2, 3, 4, 8),),
    ),
    "bilinear by a factor": (lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), (IMAGE,)),
    "bicubic": (lambda x: F.interpolate(x, size=(5, 11), mode="bicubic"), (IMAGE,)),
    "bilinear against aliasing": (lambda x: F.interpolate(x, size=(5, 7), mode="bilinear", antialias=True), (IMAGE,)),
    "bicubic against aliasing": (lambda x: F.interpolate(x, size=(5, 11), mode="bicubic", antialias=True), (IMAGE,)),
    "nearest": (lambda x: F.interpolate(x, size=(5, 11)), (IMAGE,)),
    "nearest-exact": (lambda x: F.interpolate(x, size=(5, 11), mode="nearest-exact"), (IMAGE,)),
    "bits": (lambda x: ((x > 0) & ~(x > 1)) | (x < -1), (torch.randn(4, 5),)),
    "whole numbers": (lambda x: (x * 3 - 7) // 2 % 5, (torch.arange(12).reshape(3, 4),)),
    "erf": (torch.erf, (torch.linspace(-4, 4, 41).reshape(1, 41),)),
    "variance": (lambda x: (x.var(1), x.std((0, 2), unbiased=False)), (torch.randn(3, 4, 5),)),
    "place of the largest": (lambda x: (x.argmax(), x.argmax(1, keepdim=True), x.max(2)), (torch.randn(3, 4, 5),)),
    "a relu behind sums of products": (
        lambda x: (
            torch.addmm(x, x, WEIGHT).relu(),
            F.relu6(torch.addmm(x[0], x, x, alpha=2)),
            F.linear(x, x).relu(),
            F.linear(x, x, x[0]).relu(),
            F.linear(x, WEIGHT, x[0]).clamp(-0.5, 0.5),
        ),
        (torch.randn(4, 4),),
    ),
    "scalars": (lambda x: (x.sum(), x.sum() + 1), (torch.randn(3, 4),)),
    "constants as outputs": (lambda x: (torch.ones(2), x, x), (torch.randn(3),)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_agrees(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    assert_rule_agrees(function, *inputs)


def test_an_operator_that_is_wrong_by_a_little_fails_the_oracle() -> None:
    with pytest.raises(AssertionError):
        added = iter([1.0, 1.001])
        assert_rule_agrees(lambda x: x + next(added), torch.randn(3))


def test_a_batch_norm_behind_a_relu_needs_no_transpose() -> None:
    made = assert_rule_agrees(lambda x: F.batch_norm(x.relu(), torch.ones(4), torch.ones(4)), IMAGE)
    assert kinds(made)["TRANSPOSE"] == 0


def test_a_zero_padding_in_front_of_max_pooling_is_one_only_where_nothing_is_negative() -> None:
    pooled = assert_rule_agrees(lambda x: F.max_pool2d(x, 3, 2, 1), IMAGE)
    behind_relu = assert_rule_agrees(lambda x: F.max_pool2d(x.relu(), 3, 2, 1), IMAGE)
    assert (kinds(pooled)["PADV2"], kinds(behind_relu)["PAD"]) == (1, 1)


def test_an_operator_without_a_rule_is_named_with_its_module() -> None:
    with pytest.raises(LoweringError, match=r"aten\.digamma"):
        converted(torch.digamma, torch.ones(2))


def test_a_zero_padding_in_front_of_a_convolution_goes_into_it() -> None:
    weight, even = torch.randn(4, 4, 3, 3), torch.randn(1, 4, 8, 8)
    made = assert_rule_agrees(lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, stride=2), even)
    assert kinds(made) == {"CONV_2D": 1}


def test_pooling_over_all_pixels_drops_them_itself_if_only_a_flatten_reads_it() -> None:
    made = assert_rule_agrees(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), IMAGE)
    assert kinds(made) == {"MEAN": 1}
    read_twice = assert_rule_agrees(lambda x: (y := F.adaptive_avg_pool2d(x, 1), y.flatten(1)), IMAGE)
    assert kinds(read_twice) == {"MEAN": 1, "RESHAPE": 1}


@settings(max_examples=10)
@given(st.data())
def test_paddings_of_any_form_in_front_of_a_convolution_agree(data: st.DataObject) -> None:
    amounts = data.draw(st.lists(st.integers(-1, 2), min_size=1, max_size=2).map(lambda half: [*half, *half]))
    value, shared = data.draw(st.sampled_from([0.0, 0.5])), data.draw(st.booleans())
    weight = torch.randn(4, 4, 3, 3)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = F.pad(x, amounts, value=value)
        z = F.conv2d(y, weight, stride=data_stride, padding=1)
        return (z, y) if shared else (z,)

    data_stride = data.draw(st.integers(1, 2))
    assert_rule_agrees(function, IMAGE)


def test_random_numbers_are_refused_and_not_drawn_once_for_all() -> None:
    with pytest.raises(LoweringError, match="random"):
        converted(lambda x: x + torch.rand(3), torch.ones(3))


def test_picking_by_a_computed_mask_is_refused() -> None:
    with pytest.raises((Unsupported, LoweringError)):
        converted(lambda x, i: x.index_put((i,), x[0]), torch.randn(4, 3), torch.tensor([0, 1]))
