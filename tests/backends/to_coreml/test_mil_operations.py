"""Each MIL operation against an oracle: coremltools' own inference on constants, or the torch operator it is."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

pytest.importorskip("coremltools")

from planish.backends.to_coreml.blobs import unpacked
from planish.backends.to_coreml.mil_operations import OPERATIONS, Unevaluated
from tests.backends.to_coreml.apple_oracle import assert_agrees

quick = settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def draw(shape: list[int] | tuple[int, ...], low: float = -2.0, high: float = 2.0) -> NDArray[np.float32]:
    generator = np.random.default_rng(sum(shape) * 7 + len(shape))
    return generator.uniform(low, high, tuple(shape)).astype(np.float32)


def ones(*values: float) -> torch.Tensor:
    return torch.tensor(values)


UNARY = [
    "abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "relu", "relu6", "round", "sigmoid", "sign",
    "silu", "sin", "sinh", "softplus", "softsign", "square", "tan", "tanh",
]  # fmt: skip
BOUNDED = ["acos", "asin", "atanh"]
POSITIVE = ["sqrt", "log", "rsqrt", "inverse"]
BINARY = ["add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum"]
COMPARISONS = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]
NOT_INFERRED = {"relu6", "silu", "softplus", "gelu"}
REDUCTIONS = [
    "reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm", "reduce_l2_norm",
    "reduce_sum_square", "reduce_log_sum_exp",
]  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in UNARY if kind not in NOT_INFERRED])
@quick
@given(shapes)
def test_a_unary_operation_agrees(kind: str, shape: list[int]) -> None:
    assert_agrees(kind, x=draw(shape))


@pytest.mark.parametrize("kind", BOUNDED + POSITIVE)
@quick
@given(shapes)
def test_a_unary_operation_agrees_where_it_is_defined(kind: str, shape: list[int]) -> None:
    low, high = (-0.9, 0.9) if kind in BOUNDED else (0.1, 4.0)
    assert_agrees(kind, tolerance=1e-5, x=draw(shape, low, high))


@pytest.mark.parametrize("kind", BINARY + COMPARISONS)
@quick
@given(shapes, st.booleans())
def test_a_binary_operation_broadcasts_and_agrees(kind: str, shape: list[int], whole: bool) -> None:
    x, y = draw(shape), draw(shape[-1:], 0.5, 3.0)
    if whole:
        x, y = (x * 3).astype(np.int32), (y * 2 + 1).astype(np.int32)
    if not (whole and kind == "real_div"):
        assert_agrees(kind, x=x, y=y)


@quick
@given(shapes)
def test_power_and_logic_agree(shape: list[int]) -> None:
    assert_agrees("pow", tolerance=1e-5, x=draw(shape, 0.2, 2.0), y=np.float32(1.7))
    a, b = draw(shape) > 0, draw(shape, -1, 3) > 0
    for kind in ("logical_and", "logical_or", "logical_xor"):
        assert_agrees(kind, x=a, y=b)
    assert_agrees("logical_not", x=a)
    assert_agrees("select", cond=a, a=draw(shape), b=draw(shape, 2, 3))


@pytest.mark.parametrize("kind", REDUCTIONS)
@quick
@given(shapes, st.data(), st.booleans())
def test_a_reduction_agrees(kind: str, shape: list[int], data: st.DataObject, keep: bool) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    assert_agrees(kind, tolerance=1e-5, x=draw(shape), axes=sorted(axes), keep_dims=keep)


@quick
@given(st.lists(st.integers(2, 5), min_size=2, max_size=4), st.data())
def test_orders_and_running_sums_agree(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    x = draw(shape)
    assert_agrees("reduce_argmax", x=x, axis=axis, keep_dims=False)
    assert_agrees("reduce_argmin", x=x, axis=axis, keep_dims=True)
    assert_agrees("cumsum", x=x, axis=axis, exclusive=False, reverse=data.draw(st.booleans()))
    assert_agrees("topk", x=x, k=2, axis=axis, ascending=data.draw(st.booleans()))
    assert_agrees("argsort", x=x, axis=axis, ascending=data.draw(st.booleans()))
    assert_agrees("softmax", x=x, axis=axis)


@quick
@given(st.lists(st.integers(2, 4), min_size=2, max_size=4), st.data())
def test_moves_agree(shape: list[int], data: st.DataObject) -> None:
    x = draw(shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    assert_agrees("transpose", x=x, perm=data.draw(st.permutations(range(len(shape)))))
    assert_agrees("reshape", x=x, shape=[-1, shape[-1]])
    assert_agrees("expand_dims", x=x, axes=[axis, -1])
    assert_agrees("squeeze", x=x[:, None], axes=[1])
    assert_agrees("concat", values=[x, x], axis=axis)
    assert_agrees("stack", values=[x, x + 1], axis=axis)
    assert_agrees("split", x=np.concatenate([x, x], axis), num_splits=2, axis=axis)
    assert_agrees("tile", x=x, reps=data.draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape))))
    assert_agrees("reverse", x=x, axes=[axis])
    assert_agrees("flatten2d", x=x, axis=axis or 1)
    assert_agrees("shape", x=x)
    assert_agrees("band_part", x=x, lower=data.draw(st.integers(-1, 2)), upper=data.draw(st.integers(-1, 2)))
    assert_agrees("identity", x=x)


@quick
@given(st.integers(3, 7), st.data())
def test_slices_agree(size: int, data: st.DataObject) -> None:
    x = draw([size, size])
    begin = data.draw(st.integers(0, size - 2))
    end = data.draw(st.integers(begin + 1, size))
    step = data.draw(st.integers(1, 2))
    mask = [data.draw(st.booleans()), False]
    assert_agrees("slice_by_index", x=x, begin=[begin, 0], end=[end, size], stride=[step, 1], begin_mask=mask)
    assert_agrees("slice_by_index", x=x, begin=[begin, 1], end=[0, size], squeeze_mask=[True, False])
    assert_agrees("slice_by_size", x=x, begin=[begin, 0], size=[end - begin, -1])


@quick
@given(st.integers(2, 6), st.integers(1, 4))
def test_gathers_agree(size: int, count: int) -> None:
    x, places = draw([size, 3]), (np.arange(count) * 5 % size).astype(np.int32)
    assert_agrees("gather", x=x, indices=places, axis=0)
    assert_agrees("gather", x=x, indices=np.int32(1), axis=1)
    assert_agrees("gather_along_axis", x=x, indices=np.stack([places] * 3, 1), axis=0)
    table = torch.from_numpy(x)
    pairs = torch.stack([torch.from_numpy(places), torch.from_numpy(places) % 3], -1)
    assert torch.equal(OPERATIONS["gather_nd"](table, pairs), table[pairs[:, 0].long(), pairs[:, 1].long()])


@pytest.mark.parametrize("mode", ["update", "add", "sub", "mul", "div", "max", "min"])
def test_scatters_agree_with_a_loop(mode: str) -> None:
    data, updates = torch.tensor(draw([5, 3])), torch.tensor(draw([2, 3], 0.5, 3))
    places = torch.tensor([3, 1], dtype=torch.int32)
    steps: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "update": lambda a, b: b, "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b, "max": torch.maximum, "min": torch.minimum,
    }  # fmt: skip
    wanted = data.clone()
    for row, place in enumerate(places.tolist()):
        wanted[place] = steps[mode](data[place], updates[row])
    axis = torch.tensor(0)
    along = places[:, None].expand(2, 3)
    assert torch.allclose(OPERATIONS["scatter"](data, places, updates, axis, mode), wanted)
    assert torch.allclose(OPERATIONS["scatter_along_axis"](data, along, updates, axis, mode), wanted)
    assert torch.allclose(OPERATIONS["scatter_nd"](data, places[:, None], updates, mode), wanted)


def test_made_tensors_agree() -> None:
    assert_agrees("fill", shape=[2, 3], value=np.float32(1.5))
    assert_agrees("range_1d", start=np.int32(1), end=np.int32(9), step=np.int32(3))
    assert_agrees("non_zero", x=draw([4, 3]) * (draw([4, 3]) > 0))
    hot = OPERATIONS["one_hot"](torch.tensor([2, 0]), torch.tensor(3), torch.tensor(0), ones(1), ones(0))
    assert hot.tolist() == F.one_hot(torch.tensor([2, 0]), 3).t().tolist()


@quick
@given(shapes)
def test_activations_agree(shape: list[int]) -> None:
    x = torch.tensor(draw(shape))
    a, b = torch.tensor(0.3), torch.tensor(0.2)
    for kind, wanted in {
        "elu": F.elu(x, 0.3), "leaky_relu": F.leaky_relu(x, 0.3), "thresholded_relu": torch.where(x >= 0.3, x, 0.0),
        "threshold": x.maximum(a),
    }.items():  # fmt: skip
        assert torch.allclose(OPERATIONS[kind](x, a), wanted, atol=1e-6)
    assert torch.allclose(OPERATIONS["sigmoid_hard"](x, a, b), (0.3 * x + 0.2).clamp(0, 1))
    assert torch.allclose(OPERATIONS["linear_activation"](x, a, b), 0.3 * x + 0.2)
    assert torch.allclose(OPERATIONS["scaled_tanh"](x, a, b), 0.3 * (0.2 * x).tanh())
    assert torch.allclose(OPERATIONS["clamped_relu"](x, a, b), torch.where(x >= 0, x, 0.3 * x).clamp(max=0.2))
    assert torch.allclose(OPERATIONS["clip"](x, -a, b), x.clamp(-0.3, 0.2))
    assert torch.allclose(OPERATIONS["softplus"](x), F.softplus(x), atol=1e-6)
    assert torch.allclose(OPERATIONS["silu"](x), F.silu(x)) and torch.allclose(OPERATIONS["relu6"](x), F.relu6(x))
    assert torch.allclose(OPERATIONS["gelu"](x, "TANH_APPROXIMATION"), F.gelu(x, approximate="tanh"))
    assert torch.allclose(OPERATIONS["gelu"](x, "EXACT"), F.gelu(x))


def test_an_unknown_form_is_told_and_never_passed() -> None:
    with pytest.raises(Unevaluated, match="op resize: nearest neighbor with sampling_mode OFFSET_CORNERS"):
        OPERATIONS["resize"](
            torch.ones(1, 1, 2, 2), torch.tensor([3, 3]), torch.tensor(2), "NEAREST_NEIGHBOR", "OFFSET_CORNERS"
        )
    with pytest.raises(Unevaluated, match="op gru"):
        OPERATIONS["gru"](*[torch.ones(1)] * 4, "forward", torch.tensor(True), "sigmoid", "tanh")


@pytest.mark.parametrize(("bits", "signed"), [(1, False), (2, False), (3, False), (4, False), (6, False), (4, True)])
@quick
@given(st.data())
def test_packed_bits_are_read_as_coremltools_packs_them(bits: int, signed: bool, data: st.DataObject) -> None:
    from coremltools.optimize._utils import pack_elements_into_bits

    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    values = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=40))
    packed = pack_elements_into_bits(np.array(values, np.int8 if signed else np.uint8), bits)
    assert unpacked(packed.view(np.uint8), bits, len(values), signed).tolist() == values
