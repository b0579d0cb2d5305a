"""Each rule against its PyTorch operator, on shapes and options that hypothesis draws."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor

from tests.backends.to_onnx.op_oracle import assert_rule_agrees

quick = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
sizes = st.integers(1, 7)
flags = st.booleans()


def draw(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(sum(shape)))


@quick
@given(
    st.integers(1, 3), sizes, st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2), flags, flags
)
def test_convolution_agrees(
    spatial: int, extra: int, kernel: int, stride: int, padding: int, dilation: int, bias: bool, depthwise: bool
) -> None:
    side = dilation * (kernel - 1) + extra
    groups = 4 if depthwise else 1
    weight = draw(4 // groups, *[kernel] * spatial).repeat(2, *[1] * (spatial + 1))[:4]
    shift = torch.arange(4.0) if bias else None
    function = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    assert_rule_agrees(
        lambda x: function(x, weight, shift, stride, padding, dilation, groups), draw(4, *[side] * spatial)
    )


@quick
@given(st.sampled_from([1, 2]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), flags)
def test_transposed_convolution_agrees(groups: int, kernel: int, stride: int, padding: int, widened: bool) -> None:
    assume(kernel > padding)
    output = stride - 1 if widened else 0
    weight = torch.randn(4, 3, kernel, kernel, generator=torch.Generator().manual_seed(0))
    assert_rule_agrees(lambda x: F.conv_transpose2d(x, weight, None, stride, padding, output, groups), draw(4, 5, 4))


@quick
@given(st.tuples(*[st.integers(0, 3)] * 4), flags, st.integers(0, 1))
def test_a_padding_in_front_of_a_convolution_agrees(pads: tuple[int, ...], zero: bool, inner: int) -> None:
    weight = draw(2, 3, 3)
    assert_rule_agrees(
        lambda x: F.conv2d(F.pad(x, pads, value=0.0 if zero else 0.7), weight, padding=inner), draw(2, 5, 6)
    )


@quick
@given(st.integers(4, 11), st.integers(1, 3), st.integers(1, 3), flags, flags)
def test_pooling_agrees(side: int, kernel: int, stride: int, ceil: bool, counted: bool) -> None:
    padding = kernel // 2
    assert_rule_agrees(
        lambda x: (
            F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil),
            F.avg_pool2d(x, kernel, stride, padding, ceil, counted),
            F.max_pool2d(x, kernel, stride, padding, return_indices=True)[1],
            F.avg_pool1d(x[:, :, 0], kernel, stride, padding, ceil, counted),
        ),
        draw(2, side, side + 2),
    )


@quick
@given(st.integers(2, 9), st.integers(1, 9), st.integers(1, 5))
def test_adaptive_pooling_agrees(height: int, width: int, out: int) -> None:
    assert_rule_agrees(
        lambda x: (F.adaptive_avg_pool2d(x, (out, 2)), F.adaptive_max_pool2d(x, (2, out))), draw(2, height, width)
    )


@quick
@given(
    st.integers(2, 6), st.integers(1, 12), st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic"]), flags
)
def test_resizing_agrees(side: int, out: int, mode: str, align: bool) -> None:
    option = align if mode.startswith("bi") else None
    assert_rule_agrees(lambda x: F.interpolate(x, (out, 5), mode=mode, align_corners=option), draw(2, side, side))
    assert_rule_agrees(
        lambda x: F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=option), draw(2, side, side)
    )


@quick
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data(), flags)
def test_reductions_agree(shape: list[int], data: st.DataObject, keep: bool) -> None:
    dims = data.draw(st.lists(st.integers(0, len(shape)), min_size=1, unique=True))
    dim = dims[0]
    x = draw(*shape)
    assert_rule_agrees(
        lambda x: (
            x.sum(dims, keep),
            x.mean(dims, keep),
            x.amax(dims, keep),
            x.argmax(dim, keep),
            x.max(dim, keep)[1],
            x.prod(dim, keep),
            x.logsumexp(dims, keep),
            x.var(dims, correction=0, keepdim=keep),
            x.std(dims, keepdim=keep, correction=0),
            (x > 0).any(dim, keep),
            (x > -1).all(dim, keep),
            x.cumsum(dim),
            torch.linalg.vector_norm(x, 3, dims, keep),
            x.norm(1, dims, keep),
            x.sum(),
            x.softmax(dim),
        ),
        x,
    )


@quick
@given(
    st.sampled_from([torch.float32, torch.int64, torch.int32]),
    st.sampled_from([torch.float32, torch.int64]),
    st.integers(1, 5),
)
def test_arithmetic_follows_type_promotion(left: torch.dtype, right: torch.dtype, number: int) -> None:
    x, y = (draw(4) * 9).to(left), (draw(4).abs() * 5 + 1).to(right)
    assert_rule_agrees(
        lambda x, y: (
            x + y,
            x - y,
            x * y,
            x / y,
            x // y,
            x % y,
            torch.fmod(x, y),
            torch.div(x, y, rounding_mode="trunc"),
            x**2,
            number - x,
            x + number,
            x * 0.5,
            x // -number,
            x % -number,
            x > y,
            x <= number,
            x == y,
            x != y,
            torch.maximum(x, y),
            torch.where(x > 0, x, y),
            x.clamp(-1, 2),
            torch.add(x, y, alpha=2),
        ),
        x,
        y,
    )


@quick
@given(st.permutations(range(4)), st.integers(-3, 3), st.integers(0, 3), st.integers(1, 3))
def test_moving_values_agrees(order: list[int], shift: int, dim: int, step: int) -> None:
    assert_rule_agrees(
        lambda x: (
            x.permute(order),
            x.roll(shift, dim),
            x.roll(shift),
            x.flip(dim),
            x[:, 1::step],
            x[..., -2:],
            x.flatten(1, 2),
            x.flatten(),
            x.unflatten(2, (2, 2)),
            x.repeat(1, 2, 1, step),
            x.repeat_interleave(step, 1),
            x.unfold(3, 2, step),
            x.diagonal(0, 2, 3),
            x.movedim(1, -1),
            x.squeeze(),
            x.chunk(2, 2),
            x.split([1, 3], 2),
            x.unbind(1),
            torch.cat([x, x], 1),
            torch.stack([x, x], -1),
            x.expand(2, -1, -1, -1, -1),
            F.pad(x, (1, -1, 0, step)),
            x.select(1, -1),
            x.narrow(3, 1, 2),
            x.mT,
        ),
        draw(2, 4, 5),
    )


@quick
@given(st.integers(0, 1), flags)
def test_indexing_and_writing_at_indices_agree(first: int, accumulate: bool) -> None:
    rows, columns = torch.tensor([[0, 1], [1, 0]]), torch.tensor([2, -1])
    values = torch.arange(4.0).reshape(2, 2)
    assert_rule_agrees(
        lambda x: (
            x[:, rows],
            x[:, :, columns],
            x[:, rows, columns],
            x[:, [0], :, [first, 3]],
            x[:, rows, :, columns],
            x.gather(3, (x > 0).long()),
            x.index_put(
                (torch.zeros(2, dtype=torch.long), rows, columns), values[:, :, None].expand(2, 2, 4), accumulate
            ),
            x.scatter(1, (x[:, :1] > 0).long(), 2.0),
            x.scatter_add(2, (x > 0).long(), x),
            torch.where(x > 0.5, 0.0, x),
            x.slice_scatter(x[:, :, 1:] * 2, 2, 0, 2),
            x.select_scatter(x[:, 0] + 1, 1, first),
            x.slice_scatter(x[:, :, ::2], 2, 0, 3, 2),
        ),
        draw(2, 3, 4),
    )


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("kind", ["sum", "prod", "mean", "amax", "amin"])
def test_what_is_reduced_into_places_agrees(kind: str, itself: bool) -> None:
    assert_rule_agrees(
        lambda x: x.scatter_reduce(1, (x > 0).long(), x.sin() + 2, kind, include_self=itself), draw(3, 4)
    )


@quick
@given(
    st.integers(1, 2),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["none", "causal", "bool", "float"]),
    st.integers(3, 5),
)
def test_attention_agrees(heads: int, queries: int, keys: int, masking: str, rank: int) -> None:
    q, k, v = (
        draw(*[2] * (rank - 4), *([2 * heads] if rank > 3 else []), length, 4) for length in (queries, keys, keys)
    )
    mask = {"bool": torch.ones(queries, keys).tril(-1).bool(), "float": torch.ones(queries, keys)}.get(masking)
    assert_rule_agrees(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask, is_causal=masking == "causal"), q, k, v
    )


@quick
@given(st.sampled_from([1, 2, 4]), sizes, st.sampled_from([1, 2]), flags, flags)
def test_normalization_agrees(groups: int, side: int, spatial: int, affine: bool, running: bool) -> None:
    x = draw(4, *[side + 1] * spatial)
    weight, bias = (torch.linspace(0.5, 2, 4), torch.linspace(-1, 1, 4)) if affine else (None, None)
    last = None if weight is None else torch.linspace(0.5, 2, side + 1)
    mean, var = (torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4)) if running else (None, None)
    assert_rule_agrees(
        lambda x: (
            F.group_norm(x, groups, weight, bias),
            F.instance_norm(x, weight=weight, bias=bias),
            F.layer_norm(x, (side + 1,), last),
            F.rms_norm(x, (side + 1,), last),
        ),
        x,
        tolerance=1e-4,
    )
    if running:
        assert_rule_agrees(lambda x: F.batch_norm(x, mean, var, weight, bias), x)


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
def test_the_operators_of_a_network_agree_in_every_opset(opset: int) -> None:
    weight = draw(2, 3, 3)
    assert_rule_agrees(
        lambda x: (
            F.gelu(F.conv2d(x, weight)).mean((2, 3)).softmax(-1)
            + F.gelu(x, approximate="tanh").amax((1, 2, 3))[:, None]
        ),
        draw(2, 6, 6),
        opset=opset,
    )


@pytest.mark.parametrize("length", [3, None])
def test_bags_of_embeddings_agree(length: int | None) -> None:
    table = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    if length is None:
        offsets = torch.tensor([0, 2, 2])
        assert_rule_agrees(
            lambda x: F.embedding_bag(x.flatten(), table, offsets, mode="sum") * x[:1, :1], torch.randint(0, 20, (3, 4))
        )
    for mode in ("sum", "mean", "max") if length else ():
        assert_rule_agrees(
            lambda x, mode=mode: F.embedding_bag(x, table, mode=mode), torch.randint(0, 20, (3, length or 1))
        )


@quick
@given(st.integers(1, 9), st.sampled_from([(0, 4), (-2, 3)]))
def test_histograms_agree(bins: int, limits: tuple[int, int]) -> None:
    assert_rule_agrees(lambda x: torch.histc(x.mul(3).round(), bins, *limits), draw(5, 4))
