from __future__ import annotations

import math

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import nn

from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, add_tensor
from planish.compiler.roofline import estimate_latency
from planish.compiler.trace import trace


def quantized_linear(features: int = 64) -> Program:
    """A linear layer between Q/DQ nodes, with an int8 weight: what the INT8 pass makes."""
    import torch.ao.quantization.fx._decomposed  # registers the operators

    ops = torch.ops.quantized_decomposed
    program = trace(nn.Linear(features, features).eval(), Inputs.of(torch.randn(2, features)))
    (layer,) = program.calls(torch.ops.aten.linear.default)
    weight = add_tensor(program, "weight_int8", torch.ones(features, features, dtype=torch.int8))
    scale = add_tensor(program, "scale", torch.ones(features))
    zero = add_tensor(program, "zero", torch.zeros(features, dtype=torch.int64))
    grid = (0.1, 0, -128, 127, torch.int8)
    graph = program.graph
    with graph.inserting_before(layer):
        dequantized = graph.call_function(
            ops.dequantize_per_channel.default, (weight, scale, zero, 0, -127, 127, torch.int8)
        )
        incoming = graph.call_function(ops.quantize_per_tensor.default, (layer.args[0], *grid))
        layer.update_arg(0, graph.call_function(ops.dequantize_per_tensor.default, (incoming, *grid)))
    layer.update_arg(1, dequantized)
    with graph.inserting_after(layer):
        outgoing = graph.call_function(ops.quantize_per_tensor.default, (layer, *grid))
    with graph.inserting_after(outgoing):
        result = graph.call_function(ops.dequantize_per_tensor.default, (outgoing, *grid))
    layer.replace_all_uses_with(result, delete_user_cb=lambda user: user is not outgoing)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def profile(
    backend: str = "onnx", dtypes: tuple[str, ...] = ("fp32", "int8"), bandwidth: float = 1e9, **rates: float
) -> HardwareProfile:
    """A device for which either bandwidth or arithmetic is no limit."""
    rates = rates or {"fp32": 100.0, "fp16": 200.0, "int8": 400.0}

    def figure(value: float) -> dict[str, object]:
        return {"value": float(value), "estimated": True}

    def unit(name: str, share: float) -> dict[str, object]:
        rate = {dtype: figure(share * rate) for dtype, rate in rates.items()}
        return {"name": name, "kind": "cpu", "peak_gops": rate}

    scheme = {
        "activation_dtype": "uint8", "activation_symmetric": False, "weight_dtype": "int8",
        "weight_granularity": "channel", "weight_bits": 8,
    }  # fmt: skip
    return HardwareProfile.model_validate({
        "name": "test-device", "title": "test", "vendor": "test", "backend": backend,
        "units": (unit("slow", 0.1), unit("fast", 1.0)),
        "memory": {"size_mb": figure(1000), "bandwidth_gb_s": figure(bandwidth)},
        "support": {"dtypes": dtypes, "dynamic_shapes": True},
        "quantization": scheme if "int8" in dtypes else None,
    })  # fmt: skip


def test_latency_is_bound_by_the_rate_of_the_fastest_unit_where_arithmetic_is_slow() -> None:
    program = trace(nn.Linear(64, 64).eval(), Inputs.of(torch.randn(2, 64)))
    latency = estimate_latency(program, profile(), batch=3)
    assert latency.median_ms == pytest.approx(1e3 * 2 * 3 * 64 * 64 / 100e9)
    assert (latency.source, latency.batch) == ("estimated", 3)
    assert "roofline" in latency.how and "fp32" in latency.how and "batch 3" in latency.how


def test_latency_is_bound_by_the_bytes_moved_where_memory_is_slow() -> None:
    program = trace(nn.Linear(64, 64).eval(), Inputs.of(torch.randn(2, 64)))
    latency = estimate_latency(program, profile(bandwidth=1e-3), batch=3)
    moved = 4 * (64 * 64 + 64 + 2 * 3 * 64)
    assert latency.median_ms == pytest.approx(1e3 * moved / 1e6)


def test_element_wise_ops_and_views_move_no_bytes_of_their_own() -> None:
    bare = trace(nn.Linear(64, 64).eval(), Inputs.of(torch.randn(2, 64)))
    dressed = trace(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Sigmoid(), nn.Unflatten(1, (8, 8))).eval(),
        Inputs.of(torch.randn(2, 64)),
    )
    slow = profile(bandwidth=1e-3)
    assert estimate_latency(dressed, slow).median_ms == pytest.approx(estimate_latency(bare, slow).median_ms)


def test_int8_is_estimated_at_the_int8_rate_and_width() -> None:
    program = quantized_linear(64)
    assert estimate_latency(program, profile()).median_ms == pytest.approx(1e3 * 2 * 64 * 64 / 400e9)
    moved = (64 * 64 + 64 * 4 + 64 * 12) + 64 + 64
    assert estimate_latency(program, profile(bandwidth=1e-3)).median_ms == pytest.approx(1e3 * moved / 1e6)


@pytest.mark.parametrize(("backend", "rate"), [("onnx", 100e9), ("tensorrt", 200e9), ("coreml", 200e9)])
def test_floats_run_in_fp16_where_the_backend_chooses_it(backend: str, rate: float) -> None:
    program = trace(nn.Linear(64, 64).eval(), Inputs.of(torch.randn(2, 64)))
    found = estimate_latency(program, profile(backend, ("fp32", "fp16", "int8")))
    assert found.median_ms == pytest.approx(1e3 * 2 * 64 * 64 / rate)


def test_the_caller_may_say_what_each_node_computes_in() -> None:
    program = trace(nn.Linear(64, 64).eval(), Inputs.of(torch.randn(2, 64)))
    found = estimate_latency(program, profile(), dtype_of=lambda node: "int8")
    assert found.median_ms == pytest.approx(1e3 * 2 * 64 * 64 / 400e9)


def test_a_dtype_without_a_rate_is_said_in_the_assumptions() -> None:
    program = trace(nn.Linear(64, 64).eval(), Inputs.of(torch.randn(2, 64)))
    found = estimate_latency(program, profile(dtypes=("int8",), int8=400.0))
    assert "no unit has a rate for fp32" in found.how and math.isfinite(found.median_ms)
