from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, source_module
from planish.compiler.rules import verify
from planish.compiler.scheme import IntegerType, QuantizationScheme
from planish.compiler.shapes import propagate
from planish.passes.calibrators import minmax
from planish.passes.insert_qdq import insert, scale_and_zero, weight_scale
from planish.passes.observe import observe
from planish.passes.placement import Placement, place
from tests.compiler.models import Attention, Cnn
from tests.passes.nets import S8, SCHEME, SYMMETRIC, U8, WEIGHT, RandomCnn, aten, the, traced, warm
from tests.passes.rounding import Reference, float_ranges, grid

decomposed = torch.ops.quantized_decomposed
QUANTIZE, DEQUANTIZE = decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default
PER_CHANNEL = decomposed.dequantize_per_channel.default
TENSOR_WEIGHT = replace(WEIGHT, granularity="tensor")


def quantized(program: Program, batches: list[Tensor], scheme: QuantizationScheme = SCHEME) -> Program:
    made, _, _ = steps(program, batches, scheme)
    return made


def steps(
    program: Program, batches: list[Tensor], scheme: QuantizationScheme = SCHEME
) -> tuple[Program, Program, Placement]:
    """The quantized program; a fork as it was placed; the placement on that fork."""
    work = program.fork()
    propagate(work)
    placement = place(work, scheme)
    with torch.no_grad():
        seen = observe(work, placement.observed(), [Inputs.of(batch) for batch in batches])
        made = insert(work, placement, seen, minmax)
    verify(made, "insertion")
    return made, program, placement


def assert_like_the_reference(model: nn.Module, example: Tensor, scheme: QuantizationScheme) -> None:
    program = traced(model, example)
    batches = [torch.randn_like(example), torch.randn_like(example) * 1.5]
    made, original, placement = steps(program, batches, scheme)
    assert placement.weights, "nothing was quantized"
    x = torch.randn_like(example)
    with torch.no_grad():
        ranges = float_ranges(original, placement, batches)
        expected = Reference(original, placement, ranges).run(x, enable_io_processing=False)[0]
        got = made(x)
        float_result = original(x)
    # in float32 a value half way between two integers may round to either: one step of the output's own noise
    noise = float((expected - float_result).abs().max()) + 1e-6
    close = ((got - expected).abs() <= 1e-5 * expected.abs().max()).double().mean()
    assert close >= 0.9 or float((got - expected).abs().max()) <= 0.5 * noise


@settings(max_examples=12)
@given(
    choices=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    scheme=st.sampled_from([SCHEME, SYMMETRIC]),
)
def test_a_quantized_network_computes_what_rounding_by_hand_computes(
    choices: list[int], seed: int, scheme: QuantizationScheme
) -> None:
    torch.manual_seed(seed)
    assert_like_the_reference(warm(RandomCnn(choices)), torch.randn(2, 3, 6, 6), scheme)


def test_a_quantized_attention_computes_what_rounding_by_hand_computes() -> None:
    assert_like_the_reference(Attention().eval(), torch.randn(3, 5, 8), SCHEME)


# ---------------------------------------------------------------------- weights


@settings(max_examples=40)
@given(
    channels=st.integers(1, 6),
    rest=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    exponent=st.integers(-12, 8),
    axis=st.integers(0, 1),
    seed=st.integers(0, 999),
)
def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most(
    channels: int, rest: list[int], exponent: int, axis: int, seed: int
) -> None:
    weight = torch.randn(channels, *rest, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    weight[0] = 0
    scale = weight_scale(weight, WEIGHT, axis)
    assert scale.shape == (weight.shape[axis],) and scale.dtype is torch.float32
    largest = weight.abs().transpose(0, axis).flatten(1).amax(1)
    torch.testing.assert_close(scale, (largest / 127).clamp_min(2**-23), rtol=1e-6, atol=0)
    shape = [-1 if dim == axis else 1 for dim in range(weight.ndim)]
    rounded = torch.round(weight / scale.reshape(shape)).clamp(-127, 127) * scale.reshape(shape)
    assert bool(((weight - rounded).abs() <= scale.reshape(shape) * (0.5 + 1e-4)).all())


def test_stored_weights_are_int8_and_dequantize_to_the_nearest_step() -> None:
    program = traced(warm(Cnn()), torch.randn(2, 3, 8, 8))
    made = quantized(program, [torch.randn(4, 3, 8, 8)])
    buffers = dict(made.graph_module.named_buffers())
    nodes = [*made.calls(PER_CHANNEL)]
    assert len(nodes) == 3
    for node in nodes:
        integers, scales, zeros = (made.tensor(argument) for argument in node.args[:3])
        assert integers is not None and scales is not None and zeros is not None
        assert integers.dtype is torch.int8 and int(integers.min()) >= -127
        assert not zeros.any()
        name = str(node.args[0].target).removesuffix("_int8")  # type: ignore[union-attr]
        assert f"{name}_int8" in buffers
        original = program.state_dict()[name]
        steps_ = scales.reshape(-1, *[1] * (original.ndim - 1))
        assert bool(((integers * steps_ - original).abs() <= steps_ * 0.5001).all())
        assert name not in made.state_dict(), "the float weight is kept as well"


def test_a_weight_per_tensor_has_one_scale() -> None:
    scheme = replace(SCHEME, weight=TENSOR_WEIGHT)
    program = traced(nn.Linear(6, 4), torch.randn(2, 6))
    made = quantized(program, [torch.randn(4, 6)], scheme)
    weight = the(made, DEQUANTIZE, 0)
    integers = made.tensor(weight.args[0]) if made.tensor(weight.args[0]) is not None else None
    if integers is None:
        weight = the(made, DEQUANTIZE, 1)
        integers = made.tensor(weight.args[0])
    assert integers is not None and integers.dtype is torch.int8
    assert weight.args[1] == pytest.approx(float(program.state_dict()["weight"].abs().max()) / 127)


def test_a_weight_that_layers_share_is_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.own = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.own(self.second(self.first(x).relu()).relu())
            return result

    made = quantized(traced(Tied(), torch.randn(2, 6)), [torch.randn(4, 6)])
    stored = [tensor for tensor in made.state_dict().values() if tensor.dtype is torch.int8 and tensor.ndim == 2]
    assert len(stored) == 2
    assert len({node.args[0] for node in made.calls(PER_CHANNEL)}) == 2


# ---------------------------------------------------------------------- activations


@settings(max_examples=60)
@given(st.floats(-1e4, 0), st.floats(0, 1e4), st.sampled_from([U8, S8]))
def test_a_range_lands_on_the_integers_with_zero_exactly(low: float, high: float, kind: IntegerType) -> None:
    scale, zero = scale_and_zero(low, high, kind)
    assert kind.minimum <= zero <= kind.maximum
    assert (scale, zero) == pytest.approx(grid(low, high, kind))
    for value in (low, 0.0, high):
        integer = min(max(round(value / scale) + zero, kind.minimum), kind.maximum)
        assert abs((integer - zero) * scale - value) <= scale * (1 + 1e-9)
    assert kind is not S8 or zero == 0


def test_query_key_and_value_share_one_quantize_of_what_they_read() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return torch.nn.functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)) + y

    made = quantized(traced(Block(), torch.randn(2, 5, 8)), [torch.randn(2, 5, 8)])
    (quantize,) = made.calls(QUANTIZE)
    norm, add = the(made, aten.layer_norm.default), the(made, aten.add.Tensor)
    assert quantize.args[0] is norm
    assert {node.args[0] for node in made.calls(aten.linear.default)} == {the(made, DEQUANTIZE)}
    assert norm in add.args, "the float residual reads a rounded value"


def test_every_reader_of_an_integer_result_sees_the_dequantized_value() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.conv(x)
            return y, y.sin(), x

    made = quantized(traced(Read(), torch.randn(2, 3, 6, 6)), [torch.randn(2, 3, 6, 6)])
    conv = the(made, aten.conv2d.default)
    assert [str(user.target) for user in conv.users] == [str(QUANTIZE)]
    (x,) = made.placeholders
    assert [str(user.target) for user in x.users] == [str(QUANTIZE)]
    y, sine, returned = made(torch.randn(2, 3, 6, 6))
    assert torch.equal(y.sin(), sine)
    assert len(y.unique()) <= 256 and len(returned.unique()) <= 256


def test_what_hands_integers_on_has_the_scale_of_its_source() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    made = quantized(traced(model, torch.randn(2, 3, 6, 6)), [torch.randn(2, 3, 6, 6)])
    parameters = [node.args[1:3] for node in made.calls(QUANTIZE)]
    assert len(parameters) == 4
    assert parameters[1] == parameters[2] == parameters[3] != parameters[0]


def test_quantizing_leaves_the_original_as_it_was() -> None:
    program = traced(warm(Cnn()), torch.randn(2, 3, 8, 8))
    before = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    nodes = [(node.name, str(node.target), str(node.args)) for node in program.graph.nodes]
    quantized(program, [torch.randn(4, 3, 8, 8)])
    assert [(node.name, str(node.target), str(node.args)) for node in program.graph.nodes] == nodes
    assert program.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.state_dict().items())
    assert dict(program.graph_module.named_buffers()).keys().isdisjoint({"head.weight_int8"})


def test_inserted_nodes_name_the_module_whose_value_they_round() -> None:
    made = quantized(traced(warm(Cnn()), torch.randn(2, 3, 8, 8)), [torch.randn(4, 3, 8, 8)])
    assert {source_module(node) for node in made.calls(PER_CHANNEL)} == {"stem.0", "branch.0", "head"}
