"""Integer weights alone: which, how exact, how small; and scales chosen at run time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import planish
from planish.compiler.errors import PassError, UserError
from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.compiler.scheme import IntegerOp, IntegerType
from planish.passes.quantize_int8 import QuantizeInt8
from planish.passes.quantize_weights import QuantizeWeights
from tests.compiler.models import TiedAround
from tests.passes.nets import CONV, SCHEME, RandomCnn, aten, context, the, traced

ROWS = IntegerType(torch.int8, -128, 127, symmetric=False, granularity="row")
TENSOR = IntegerType(torch.int8, -128, 127, symmetric=False)
LAYER = IntegerOp((aten.linear.default,), (0,), weight=1)
TABLE = IntegerOp((aten.embedding.default,), (), weight=0)
STORING = replace(
    SCHEME,
    stored=(CONV, LAYER, TABLE),
    at_run_time=(
        replace(LAYER, activation_types=(ROWS,)),
        replace(CONV, activation_types=(TENSOR,), grouped=False),
    ),
)


def made(model: nn.Module, x: Tensor, scheme: Any = STORING, **options: Any) -> tuple[Program, Program, Any]:
    """Before and after the pass, and what the context was told."""
    program, told = traced(model, x), context(scheme)
    after = QuantizeWeights(**{"min_values": 0} | options).run(program, told)
    verify(after, "quantizing weights")
    return program, after, told


def rounded(weight: Tensor) -> Tensor:
    """The reference: each row on its own grid of 127 steps to both sides."""
    scale = weight.flatten(1).abs().amax(1).clamp_min(1e-12).reshape(-1, *[1] * (weight.ndim - 1)) / 127
    return torch.round(weight / scale).clamp(-127, 127) * scale


@settings(max_examples=4)
@given(st.lists(st.integers(0, 6), max_size=3), st.integers(0, 1000))
def test_a_network_computes_what_it_computes_with_rounded_weights(choices: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model, x = RandomCnn(choices).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        _, after, _ = made(model, x)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.copy_(rounded(module.weight))
        torch.testing.assert_close(after(x), model(x), rtol=1e-5, atol=1e-5)


def test_weights_take_a_quarter_of_the_bytes_and_a_shared_one_is_stored_once() -> None:
    before, after, _ = made(TiedAround(), torch.zeros(2, 5, dtype=torch.long))

    def stored(program: Program) -> int:
        read = [program.tensor(node) for node in program.graph.nodes if node.op == "get_attr"]
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in read}.values() if tensor is not None)

    values, channels, biases = 40 * 32 + 32 * 32, 40 + 32, 32
    assert stored(before) == 4 * (values + biases)
    assert stored(after) == values + 5 * channels + 4 * biases


def test_small_weights_and_what_the_user_names_stay_float() -> None:
    _, _, told = made(TiedAround(), torch.zeros(2, 5, dtype=torch.long), min_values=1025, keep_float=("head",))
    found = {decision.module: (decision.outcome, decision.reason) for decision in told.decisions}
    assert found["table"] == ("int8 weights", "computes in float")
    assert found["layer"] == ("float", "its weight has fewer than 1025 values")
    assert found["head"] == ("float", "kept float on request")


def test_scales_at_run_time_are_those_of_each_row_of_a_layer() -> None:
    """Rows of very different sizes: one scale for all would round the small ones to nothing."""
    layer, x = nn.Linear(8, 4), torch.randn(3, 8) * torch.tensor([[1e-3], [1.0], [1e3]])
    with torch.no_grad():
        _, after, told = made(layer, x, activations="dynamic")
        low, high = x.amin(1, keepdim=True).clamp_max(0), x.amax(1, keepdim=True).clamp_min(0)
        steps = (high - low) / 255
        weight = rounded(layer.weight)
        bound = steps / 2 * weight.abs().sum(1) * 1.2 + 1e-6  # the zero point is rounded too
        assert bool(((after(x) - F.linear(x, weight, layer.bias)).abs() <= bound).all())
    assert told.decisions[0].outcome == "int8"


def test_layers_that_read_one_value_share_what_quantizes_it() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x)

    _, after, _ = made(Fork(), torch.randn(2, 8), activations="dynamic")
    assert len([*after.calls(torch.ops.quantized_decomposed.choose_qparams_per_token_asymmetric.default)]) == 1


def test_a_depthwise_convolution_computes_in_float_where_the_backend_has_no_integer_one() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1))
    _, _, told = made(model, torch.randn(1, 4, 8, 8), activations="dynamic")
    assert [decision.outcome for decision in told.decisions] == ["int8 weights", "int8"]


def test_what_quantize_int8_left_in_float_gets_integer_weights_and_the_rest_stays() -> None:
    x = torch.randn(4, 3, 8, 8)
    told = context(STORING, x)
    program = QuantizeInt8(keep_float=("head",)).run(traced(RandomCnn([0]), x), told)
    after = QuantizeWeights(min_values=0).run(program, told)
    weight = the(after, aten.linear.default).args[1]
    assert isinstance(weight, fx.Node)
    assert weight.target is torch.ops.quantized_decomposed.dequantize_per_channel.default
    assert len([*after.calls(aten.conv2d.default)]) == 2
    assert {d.module for d in told.decisions if d.reason == "its weight is quantized already, or computed"} == {
        "stem", "layers.0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "scheme", "said"),
    [
        ({"activations": "int4"}, STORING, "activations='float' or 'dynamic', not 'int4'"),
        ({"keep_float": "head"}, STORING, r"keep_float a tuple of module names: \('head',\)"),
        ({"min_values": -1}, STORING, "min_values of at least 0, not -1"),
        ({"keep_float": ("heat",)}, STORING, "'heat', which is no module of the model.*head"),
        ({}, SCHEME, "stores no INT8 weights"),
        ({}, None, "stores no INT8 weights"),
        ({"activations": "dynamic"}, replace(STORING, at_run_time=()), "chooses no scales at run time"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(options: dict[str, Any], scheme: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        made(TiedAround(), torch.zeros(2, 5, dtype=torch.long), scheme, **options)


def test_a_model_without_such_weights_is_told_to_leave_the_pass_out() -> None:
    with pytest.raises(PassError, match="no weight of the model can be stored in INT8"):
        made(nn.ReLU(), torch.randn(2, 3))


def test_a_saved_program_with_scales_at_run_time_computes_the_same(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    _, after, _ = made(RandomCnn([1]), x, activations="dynamic")
    torch.testing.assert_close(Program.load(after.save(tmp_path / "program.zip"))(x), after(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "runtime", "largest"),
    [
        ("x86-avx2", "onnxruntime", 0.3),
        ("raspberry-pi-5", "ai_edge_litert", 0.3),
        ("iphone-15-pro", "coremltools", 0.65),
    ],
)
def test_every_backend_that_stores_integer_weights_writes_smaller_files_that_pass_its_proof(
    target: str, runtime: str, largest: float
) -> None:
    """Core ML's float weights have half the size to begin with."""
    pytest.importorskip(runtime)
    model, tokens = TiedAround(), torch.zeros(2, 5, dtype=torch.long)
    model.table, model.layer = nn.Embedding(256, 256), nn.Linear(256, 256)
    model.head = nn.Linear(256, 256, bias=False)
    model.head.weight = model.table.weight
    sizes = {}
    for passes in ((), (QuantizeWeights(),)):
        result = planish.compile(model.eval(), target, tokens, passes=passes)
        assert result.report.errors, "the proof ran"
        sizes[passes] = result.artifact.size_bytes
    whole, small = sizes.values()
    assert small < largest * whole
