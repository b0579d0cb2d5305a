"""INT8: the file against the Q/DQ graph that the pass made, and integers wherever they were meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

pytest.importorskip("ai_edge_litert")
from planish.backends.to_tflite.converter import convert
from planish.backends.to_tflite.emitter import Unsupported
from planish.backends.to_tflite.files import needed
from planish.backends.to_tflite.graph import Form
from planish.backends.to_tflite.integers import decomposed
from planish.backends.to_tflite.lower import output_leaves
from planish.backends.to_tflite.values import Quantization
from planish.compiler.errors import LoweringError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.verify import snr_db
from tests.backends.to_onnx.family_base import Function
from tests.backends.to_tflite.nets import Residual, in_int8
from tests.backends.to_tflite.oracle import kinds, run_file, traced


def assert_integers_agree(integers: Program, *inputs: Tensor, steps: float = 1.0) -> None:
    """Each value of the file at most ``steps`` quanta of the output from the Q/DQ graph."""
    made = convert(integers)
    wanted = pytree.tree_leaves(integers(*inputs))
    for leaf, got, expected in zip(output_leaves(integers), run_file(made, Inputs(inputs)), wanted, strict=True):
        assert float((expected - got).abs().max()) <= steps * leaf.args[1] * 1.001


def test_a_whole_net_runs_in_integers_between_one_quantize_and_one_dequantize() -> None:
    x = torch.randn(1, 3, 16, 16)
    _, integers = in_int8(Residual(), x)
    made = convert(integers)
    assert kinds(made)["QUANTIZE"] == kinds(made)["DEQUANTIZE"] == 1
    inner = [op for op in needed(made.graph) if op.kind not in ("QUANTIZE", "DEQUANTIZE")]
    assert {op.outputs[0].dtype for op in inner} == {torch.int8}
    assert kinds(made)["RELU"] == kinds(made)["TRANSPOSE"] == 0
    assert_integers_agree(integers, x, steps=2)


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    form = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 1))
    kind, groups = draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d])), draw(st.sampled_from([1, 4]))
    layer = kind(4, 8, *form, groups=groups, bias=draw(st.booleans()))
    return nn.Sequential(layer, draw(st.sampled_from([nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.3, 0.4), nn.Identity()])))


@settings(max_examples=6)
@given(st.lists(layers(), min_size=4, max_size=4), st.integers(0, 1000))
def test_a_layer_in_integers_is_at_most_one_quantum_off(side_by_side: list[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(1, 4, 7, 7)
    net = Function(lambda self, x: tuple(layer(x) for layer in self.layers), layers=nn.ModuleList(side_by_side))
    _, integers = in_int8(net, x)
    assert_integers_agree(integers, x)


@settings(max_examples=10)
@given(st.data())
def test_random_small_graphs_in_integers_stay_near_the_program(data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=5))
    torch.manual_seed(len(steps))
    layers = nn.ModuleDict({f"{place}": nn.Conv2d(4, 4, 3, padding=1) for place in range(len(steps))})

    def function(self: nn.Module, x: Tensor) -> Tensor:
        for place, step in enumerate(steps):
            x = STEPS[step](getattr(self, "layers")[f"{place}"](x), x)  # noqa: B009
        return x

    x = torch.randn(1, 4, 8, 8)
    _, integers = in_int8(Function(function, layers=layers), x)
    (got,) = run_file(convert(integers), Inputs((x,)))
    found = snr_db(integers(x), got)
    assert found is None or found > 25


VECTOR = torch.linspace(-1, 1, 4).reshape(4, 1, 1)
KERNEL = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) / 6
STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "layer": lambda y, x: y,
    "relu": lambda y, x: y.relu(),
    "residual": lambda y, x: y + x,
    "residual relu": lambda y, x: (y + x).relu(),
    "join": lambda y, x: torch.cat([y, x], 1)[:, :4],
    "pool": lambda y, x: F.max_pool2d(y, 3, 1, 1),
    "average": lambda y, x: F.avg_pool2d(y.relu(), 2, 1),
    "float": lambda y, x: y.sin(),
    "product": lambda y, x: y * x,
    "difference": lambda y, x: y - x,
    "gate": lambda y, x: y * y.sigmoid(),
    "factor": lambda y, x: y * 0.5,
    "squashed": lambda y, x: y.tanh(),
    "hardswish": lambda y, x: F.hardswish(y),
    "leaky": lambda y, x: F.leaky_relu(y, 0.1),
    "gelu": lambda y, x: F.gelu(y),
    "silu": lambda y, x: F.silu(y),
    "hardsigmoid": lambda y, x: F.hardsigmoid(y),
    "sigmoid": lambda y, x: y.sigmoid(),
    "negative": lambda y, x: y * -0.3,
    "number": lambda y, x: y + 0.25,
    "vector": lambda y, x: y * VECTOR - VECTOR,
    "swap": lambda y, x: y.transpose(-1, -2),
    "upwards": lambda y, x: F.conv_transpose2d(y, KERNEL, None, 1, 1).relu(),
}
INTEGERS = (
    "product", "difference", "squashed", "hardswish", "leaky", "gelu", "silu", "hardsigmoid", "sigmoid", "factor",
    "negative", "number", "vector", "gate", "upwards",
)  # fmt: skip
"""Steps that TFLite runs in integers."""


class Quantized(nn.Module):
    weight: Tensor

    def __init__(self, dtype: torch.dtype, low: int, high: int) -> None:
        super().__init__()
        self.limits = (low, high, dtype)

    def forward(self, x: Tensor) -> Tensor:
        integers = decomposed.quantize_per_tensor(x, 0.05, 0, *self.limits)
        return decomposed.dequantize_per_tensor(integers, 0.05, 0, *self.limits).relu()


def test_unsigned_activations_are_refused_because_they_crash_the_runtime() -> None:
    with pytest.raises((Unsupported, LoweringError), match="int8"):
        convert(traced(Quantized(torch.uint8, 0, 255), torch.randn(2, 3)))


@pytest.mark.parametrize("name", INTEGERS)
def test_a_function_between_layers_runs_in_integers(name: str) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(STEPS[name](self.first(x), x))

    x = torch.randn(1, 4, 8, 8)
    _, integers = in_int8(Between(), x)
    made = convert(integers)
    assert kinds(made)["DEQUANTIZE"] == kinds(made)["QUANTIZE"] == 1, kinds(made)
    (got,) = run_file(made, Inputs((x,)))
    found = snr_db(integers(x), got)
    assert found is None or found > 30


def test_quantized_ends_are_int8_in_the_file() -> None:
    x = torch.randn(1, 3, 16, 16)
    _, integers = in_int8(Residual(), x)
    made = convert(integers, Form(integer_ends=True))
    assert [value.dtype for value in (*made.graph.inputs, *made.graph.outputs)] == [torch.int8, torch.int8]
    assert kinds(made)["QUANTIZE"] == kinds(made)["DEQUANTIZE"] == 0
    (got,) = run_file(made, Inputs((x,)))
    (float_ends,) = run_file(convert(integers), Inputs((x,)))
    assert torch.equal(got, float_ends)


def test_weights_alone_in_integers_are_dequantized_and_computed_in_float() -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randint(-127, 127, (6, 4), dtype=torch.int8))
            self.register_buffer("scales", torch.rand(6) + 0.1)
            self.register_buffer("zeros", torch.zeros(6, dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            weight = decomposed.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
            return F.linear(x, weight)

    model, x = Weights(), torch.randn(3, 4)
    made = convert(traced(model, x))
    assert kinds(made) == {"DEQUANTIZE": 1, "FULLY_CONNECTED": 1}
    (got,) = run_file(made, Inputs((x,)))
    assert torch.allclose(model(x), got, rtol=1e-5)


class Encoder(nn.Module):
    """A block of a transformer with a classifier."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.enter, self.three, self.back = nn.Linear(16, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.wide, self.narrow, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)
        self.before, self.behind = nn.LayerNorm(32), nn.LayerNorm(32, elementwise_affine=False)
        self.places = nn.Parameter(torch.randn(1, 8, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self.enter(x) + self.places)
        query, key, value = (part.reshape(1, 8, 4, 8).transpose(1, 2) for part in self.three(x).chunk(3, -1))
        seen = F.scaled_dot_product_attention(query, key, value, **self.options).transpose(1, 2).reshape(1, 8, 32)
        x = x + self.back(seen)
        return self.head(self.behind(x + self.narrow(F.silu(self.wide(x)))).mean(1)).softmax(-1)


DISTANCES = -(torch.arange(8) - torch.arange(8)[:, None]).abs() * 0.3
TOKENS = torch.arange(8) < 6


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("coral-edgetpu", {}),
        ("cortex-m7", {"is_causal": True}),
        ("cortex-m7", {"attn_mask": DISTANCES.masked_fill(~TOKENS, -torch.inf)}),
    ],
    ids=["edge tpu", "causal", "distances and keys"],
)
def test_a_transformer_runs_in_integers_where_there_is_nothing_else(target: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 16)
    floats, integers = in_int8(Encoder(**options), x, target=target)
    made = convert(integers, Form(integer_ends=True))
    kept = needed(made.graph)
    assert {op.outputs[0].dtype for op in kept} == {torch.int8}
    shares = [op.outputs[0].quantization for op in kept if op.kind in ("SOFTMAX", "LOGISTIC")]
    assert shares == [Quantization((1 / 256,), (-128,))] * 3
    on_constants = {op.kind for op in kept if op.inputs[0] is not None and op.inputs[0].stored.data is not None}
    assert not on_constants & {"RESHAPE", "TRANSPOSE"}
    (got,) = run_file(made, Inputs((x,)))
    for program in (integers, floats):
        found = snr_db(program(x).detach(), got)
        assert found is None or found > 30
