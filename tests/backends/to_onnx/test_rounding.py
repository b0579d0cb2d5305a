"""The bounds of device scripts: nearer than any wrong file, farther than any right kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper
from torch import Tensor

from planish.backends.to_onnx import rounding
from planish.backends.to_onnx.files import save
from planish.backends.to_onnx.reference import Reference, Session
from planish.backends.to_tensorrt.half import in_half
from planish.compiler.half_precision import in_half_precision
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace
from planish.compiler.verify import snr_db
from tests.backends.to_tensorrt.device import build_files, profile
from tests.backends.to_tensorrt.graphs import Graph
from tests.compiler.models import ImageAndWords

INPUTS = (torch.linspace(-2, 2, 2048).sin().reshape(2, 16, 8, 8), torch.arange(10).reshape(2, 5))


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_files(tmp_path_factory.mktemp("files") / "artifact", profile()) / "model.onnx"


def worst(a: list[Tensor], b: list[Tensor]) -> float:
    found = [snr_db(x.double(), y.double()) for x, y in zip(a, b, strict=True)]
    return min((each for each in found if each is not None), default=1e3)


@settings(deadline=None, max_examples=20)
@given(arrays.arrays(np.float32, (1, 8), elements=st.floats(2**-13, 2**15, width=32)))
def test_eleven_bits_are_those_of_float16(values: np.ndarray) -> None:
    graph = Graph()
    model = graph.model(graph.op("Mul", graph.input(1, 8), graph.constant(np.float32(1))))
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    rounding._round_floats(model.graph, 11)
    import onnxruntime

    got = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x0": values})[0]
    np.testing.assert_array_equal(got, values.astype(np.float16).astype(np.float32))


def test_the_replay_is_the_program_rounded_after_each_operator(tmp_path: Path) -> None:
    from planish.backends.to_onnx.exporter import lower_any

    torch.manual_seed(0)
    program = trace(ImageAndWords().eval(), Inputs(INPUTS))
    model, _ = lower_any(program, 19)
    save(model, tmp_path / "model.onnx")
    expected = Reference(tmp_path / "model.onnx")(INPUTS)
    found = worst(expected, rounding.replayed(ir.load(tmp_path / "model.onnx"), INPUTS, bits=11))
    with torch.no_grad():
        assert found == pytest.approx(worst(expected, [*in_half_precision(program)(*INPUTS)]), abs=1.5)


def test_integer_kernels_and_half_precision_lie_within_the_bound(quantized: Path, tmp_path: Path) -> None:
    bound = rounding.least_snr_db(quantized, INPUTS, "float16")
    expected = Reference(quantized)(INPUTS)
    assert worst(expected, Session(quantized)(INPUTS)) >= bound
    model = ir.load(quantized)
    assert in_half(model, INPUTS) is None
    save(model, tmp_path / "half.onnx")
    assert worst(expected, Reference(tmp_path / "half.onnx")(INPUTS)) >= bound
    # The file in FP16 has a bound of its own, about as near: few outputs vary by some dB.
    assert rounding.least_snr_db(tmp_path / "half.onnx", INPUTS, "float16") == pytest.approx(bound, abs=8)


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("part", ["bias", "scale"])
def test_a_lost_bias_and_a_wrong_scale_lie_outside(part: str, precision: str, quantized: Path, tmp_path: Path) -> None:
    proto = onnx.load(quantized)
    conv = next(node for node in proto.graph.node if node.op_type == "Conv")
    dequantize = next(node for node in proto.graph.node if node.output[0] == conv.input[1])
    name = conv.input[2] if part == "bias" else dequantize.input[1]
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(0 if part == "bias" else 1.5), name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    bound = rounding.least_snr_db(quantized, INPUTS, precision)  # type: ignore[arg-type]
    assert worst(Reference(quantized)(INPUTS), Reference(tmp_path / "wrong.onnx")(INPUTS)) < bound


def test_floats_are_bounded_nearer_in_32_bits_than_in_16(tmp_path: Path) -> None:
    graph = Graph()
    x, weight = graph.input(4, 32), graph.floats(32, 8)
    onnx.save(graph.proto(graph.op("MatMul", graph.op("Tanh", x), weight)), tmp_path / "model.onnx")
    inputs = [torch.randn(4, 32, generator=torch.Generator().manual_seed(0))]
    in_16, in_32 = (rounding.least_snr_db(tmp_path / "model.onnx", inputs, p) for p in ("float16", "float32"))
    assert in_32 - in_16 == pytest.approx(6.02 * (17 - 8), abs=4)
    # Outputs that only move are equal to the last bit: the bound is that of one rounding.
    other = Graph()
    onnx.save(other.proto(other.op("Transpose", other.input(4, 32), perm=[1, 0])), tmp_path / "moved.onnx")
    assert rounding.least_snr_db(tmp_path / "moved.onnx", inputs, "float16") == pytest.approx(
        6.02 * 8 - rounding.MARGIN_DB, abs=0.1
    )
