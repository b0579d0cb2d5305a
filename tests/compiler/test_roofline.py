from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import nn

from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, add_tensor
from planish.compiler.roofline import estimate_latency
from planish.compiler.trace import trace, trace_with_notes


def quantized_linear(features: int = 64, integers: torch.Tensor | None = None) -> Program:
    """A linear layer between Q/DQ nodes, with an int8 weight: what the INT8 pass makes."""
    import torch.ao.quantization.fx._decomposed  # registers the operators

    ops = torch.ops.quantized_decomposed
    program = trace(nn.Linear(features, features).eval(), Inputs.of(torch.randn(2, features)))
    (layer,) = program.calls(torch.ops.aten.linear.default)
    integers = torch.ones(features, features) if integers is None else integers
    weight = add_tensor(program, "weight_int8", integers.to(torch.int8))
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
    backend: str = "onnx",
    dtypes: tuple[str, ...] = ("fp32", "int8"),
    bandwidth: float = 1e9,
    overhead: Mapping[str, float] = MappingProxyType({}),
    half_rate: Mapping[str, float] = MappingProxyType({}),
    **rates: float,
) -> HardwareProfile:
    """A device for which either bandwidth or arithmetic is no limit."""
    rates = rates or {"fp32": 100.0, "fp16": 200.0, "int8": 400.0}

    def figure(value: float) -> dict[str, object]:
        return {"value": float(value), "estimated": True}

    def unit(name: str, share: float) -> dict[str, object]:
        rate = {dtype: figure(share * rate) for dtype, rate in rates.items()}
        return {"name": name, "kind": "cpu", "peak_gops": rate}

    sparse = any(dtype.endswith("_sparse") for dtype in rates)
    support = {"sparsity": ("2:4",), "sparse_min_channels": figure(64)} if sparse else {}
    scheme = {
        "activation_dtype": "uint8", "activation_symmetric": False, "weight_dtype": "int8",
        "weight_granularity": "channel", "weight_bits": 8,
    }  # fmt: skip
    return HardwareProfile.model_validate({
        "name": "test-device", "title": "test", "vendor": "test", "backend": backend,
        "units": (unit("slow", 0.1), unit("fast", 1.0)),
        "memory": {"size_mb": figure(1000), "bandwidth_gb_s": figure(bandwidth)},
        "support": {"dtypes": dtypes, "dynamic_shapes": True, **support},
        "kernel_overhead_us": {dtype: figure(value) for dtype, value in overhead.items()},
        "half_rate_channels": {dtype: figure(value) for dtype, value in half_rate.items()},
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
    moved = (64 * 64 + 64 * 4) + 64 + 64
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


# ---------------------------------------------------------------------- kernels, and their width


def chain(layers: int, width: int, rows: int = 2) -> Program:
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return trace(nn.Sequential(*parts).eval(), Inputs.of(torch.randn(rows, width)))


def test_each_kernel_adds_the_overhead_of_what_it_computes_in() -> None:
    without, of_three = (
        estimate_latency(chain(3, 64), profile(overhead=of)) for of in ({}, {"fp32": 7.0, "int8": 90.0})
    )
    assert of_three.median_ms == pytest.approx(without.median_ms + 3 * 7e-3)
    assert "7 us a kernel in fp32" in of_three.how and "no overhead of kernels in fp32" in without.how
    integers = [estimate_latency(quantized_linear(), profile(overhead=of)) for of in ({}, {"fp32": 7.0, "int8": 90.0})]
    assert integers[1].median_ms == pytest.approx(integers[0].median_ms + 90e-3)


def test_a_product_of_so_many_channels_runs_at_half_of_the_peak_rate() -> None:
    at_peak, narrow, narrower = (
        estimate_latency(chain(1, 64), profile(half_rate={"fp32": half} if half else {})) for half in (0, 64, 192)
    )
    assert narrow.median_ms == pytest.approx(2 * at_peak.median_ms)
    assert narrower.median_ms == pytest.approx(4 * at_peak.median_ms)
    assert "half the rate at 192 channels in fp32" in narrower.how and "no loss by narrow layers" in at_peak.how


def test_channels_of_all_groups_count_and_the_narrower_side_of_a_layer() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 8, 1))
    program = trace(model.eval(), Inputs.of(torch.randn(2, 32, 4, 4)))
    found = estimate_latency(program, profile(half_rate={"fp32": 32})).median_ms
    depthwise, pointwise = 32 * 9 * 16, 32 * 8 * 16
    assert found == pytest.approx(1e3 * 2 * (2 * depthwise + 5 * pointwise) / 100e9)


def test_products_of_any_rank_have_channels() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.vector = nn.Conv2d(8, 4, 1), nn.Parameter(torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x).flatten(1).mean(1)  # no batch axis
            return torch.dot(y, self.vector) + torch.mv(torch.outer(y, y), self.vector).sum()

    program = trace_with_notes(Odd().eval(), Inputs.of(torch.randn(8, 5, 5)), dynamic_batch=False).program
    found = estimate_latency(program, profile(half_rate={"fp32": 4})).median_ms
    assert found == pytest.approx(1e3 * 2 * 2 * (8 * 4 * 25 + 4 + 16) / 100e9)


@pytest.mark.parametrize(("layers", "share"), [(1, 2), (1, 4), (3, 2)])
def test_of_equal_macs_the_deep_and_narrow_net_takes_longer(layers: int, share: int) -> None:
    wide, deep = chain(layers, 64), chain(layers * share**2, 64 // share)
    for losses in ({"overhead": {"fp32": 1.0}}, {"half_rate": {"fp32": 8.0}}):
        device = profile(**losses)  # type: ignore[arg-type]
        assert estimate_latency(deep, device).median_ms > estimate_latency(wide, device).median_ms


def test_a_table_is_read_by_the_row() -> None:
    program = trace(nn.Embedding(100_000, 8).eval(), Inputs.of(torch.tensor([[1, 2, 3], [4, 5, 6]])))
    found = estimate_latency(program, profile(bandwidth=1e-3)).median_ms
    assert found == pytest.approx(1e3 * (3 * 8 + 3 * 8 * 4) / 1e6)


# ---------------------------------------------------------------------- 2:4


def with_sparse_kernels(bandwidth: float = 1e9) -> HardwareProfile:
    return profile(
        "tensorrt", ("fp32", "fp16", "int8"), bandwidth,
        fp32=100.0, fp16=200.0, int8=400.0, fp16_sparse=400.0, int8_sparse=800.0,
    )  # fmt: skip


def halved(weight: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """``weight`` with every second pair of values along ``axis`` set to zero."""
    kept = torch.arange(weight.shape[axis]) % 4 < 2
    return weight * kept.view([-1 if each == axis else 1 for each in range(weight.ndim)])


def with_weights(model: nn.Module, *shape: int, axis: int = 1) -> Program:
    for module in model.modules():
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            weight.data = halved(weight.data, axis)
    return trace(model.eval(), Inputs.of(torch.randn(2, *shape)))


def test_weights_in_two_four_run_at_the_sparse_rate_and_the_estimate_says_so() -> None:
    device = with_sparse_kernels()
    found = estimate_latency(with_weights(nn.Linear(64, 64), 64), device)
    assert found.median_ms == pytest.approx(1e3 * 2 * 64 * 64 / 400e9)
    assert "1 products with 2:4 weights at the sparse rate" in found.how
    dense = estimate_latency(with_weights(nn.Linear(64, 64), 64), profile("tensorrt", ("fp32", "fp16", "int8")))
    assert dense.median_ms == pytest.approx(1e3 * 2 * 64 * 64 / 200e9) and "2:4" not in dense.how


def test_weights_of_a_convolution_are_two_four_along_its_input_channels() -> None:
    device = with_sparse_kernels()
    right, wrong = (with_weights(nn.Conv2d(64, 64, 1), 64, 2, 2, axis=axis) for axis in (1, 0))
    times = [estimate_latency(each, device).median_ms for each in (right, wrong)]
    assert times[1] == pytest.approx(2 * times[0])


def test_int8_weights_in_two_four_run_at_the_sparse_rate_of_int8() -> None:
    program = quantized_linear(64, halved(torch.ones(64, 64)))
    assert estimate_latency(program, with_sparse_kernels()).median_ms == pytest.approx(1e3 * 2 * 64 * 64 / 800e9)
    slow = with_sparse_kernels(bandwidth=1e-3)
    saved = estimate_latency(quantized_linear(64), slow).median_ms - estimate_latency(program, slow).median_ms
    assert saved == pytest.approx(1e3 * (1 - 5 / 8) * 64 * 64 / 1e6)


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(48, 64),  # narrower than the profile's 64
        nn.Linear(64, 68),  # no multiple of eight outputs
        nn.Linear(72, 64),  # no multiple of sixteen inputs
        nn.Conv1d(128, 128, 1, groups=2),
    ],
)
def test_what_has_no_sparse_kernel_runs_at_the_dense_rate(model: nn.Module) -> None:
    device = with_sparse_kernels()
    shape = (128, 4) if isinstance(model, nn.Conv1d) else (model.in_features,)
    assert "2:4" not in estimate_latency(with_weights(model, *shape), device).how


def test_one_value_too_many_makes_a_weight_dense() -> None:
    device = with_sparse_kernels()
    model = nn.Linear(64, 64)
    model.weight.data = halved(model.weight.data)
    model.weight.data[3, 2] = 1e-6
    program = trace(model.eval(), Inputs.of(torch.randn(2, 64)))
    assert "2:4" not in estimate_latency(program, device).how
