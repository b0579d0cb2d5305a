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

pytest.importorskip("ai_edge_litert")
from planish.backends.to_tflite.converter import convert
from planish.backends.to_tflite.emitter import Unsupported
from planish.backends.to_tflite.files import needed
from planish.backends.to_tflite.graph import Form
from planish.backends.to_tflite.integers import decomposed
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
    (got,) = run_file(made, Inputs(inputs), apart=False)
    wanted = integers(*inputs)
    (quantized,) = [node for node in integers.calls() if node is integers.output.args[0][0]]  # type: ignore[index]
    quantum = float(quantized.args[1])  # type: ignore[arg-type]
    assert float((wanted - got).abs().max()) <= steps * quantum * 1.001


def test_a_whole_net_runs_in_integers_between_one_quantize_and_one_dequantize() -> None:
    x = torch.randn(1, 3, 16, 16)
    _, integers = in_int8(Residual(), x)
    made = convert(integers)
    assert kinds(made)["QUANTIZE"] == kinds(made)["DEQUANTIZE"] == 1
    inner = [op for op in needed(made.graph) if op.kind not in ("QUANTIZE", "DEQUANTIZE")]
    assert {op.outputs[0].dtype for op in inner} == {torch.int8}
    assert kinds(made)["RELU"] == kinds(made)["TRANSPOSE"] == 0
    assert_integers_agree(integers, x, steps=2)


@settings(max_examples=25)
@given(st.data())
def test_a_layer_in_integers_is_at_most_one_quantum_off(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 1000)))
    groups = draw(st.sampled_from([1, 4]))
    layer = nn.Conv2d(4, 8, draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 1)), groups=groups)
    activation = draw(st.sampled_from([nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.3, 0.4), nn.Identity()]))
    x = torch.randn(1, 4, 7, 7)
    _, integers = in_int8(nn.Sequential(layer, activation), x)
    assert_integers_agree(integers, x)


@settings(max_examples=30)
@given(st.data())
def test_random_small_graphs_in_integers_stay_near_the_program(data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5))
    torch.manual_seed(len(steps))
    layers = nn.ModuleDict({f"{place}": nn.Conv2d(4, 4, 3, padding=1) for place in range(len(steps))})

    def function(self: nn.Module, x: Tensor) -> Tensor:
        for place, step in enumerate(steps):
            x = STEPS[step](getattr(self, "layers")[f"{place}"](x), x)  # noqa: B009
        return x

    x = torch.randn(1, 4, 8, 8)
    _, integers = in_int8(Function(function, layers=layers), x)
    (got,) = run_file(convert(integers), Inputs((x,)), apart=False)
    found = snr_db(integers(x), got)
    assert found is None or found > 25


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
    "swap": lambda y, x: y.transpose(-1, -2),
}


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


@pytest.mark.parametrize("name", ["product", "difference", "squashed", "hardswish", "leaky", "gelu"])
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
    assert kinds(made)["DEQUANTIZE"] == 1
    (got,) = run_file(made, Inputs((x,)), apart=False)
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
