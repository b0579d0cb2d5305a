"""What is read back from files: biases, floats where integers were meant, counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("ai_edge_litert")
from ai_edge_litert import schema_py_generated as fb

from planish.backends.to_tflite.audit import demand_bias_scales, float_fallbacks, operators_in, summary
from planish.backends.to_tflite.converter import convert
from planish.backends.to_tflite.files import save
from planish.compiler.errors import VerificationError
from tests.backends.to_tflite.nets import Residual, in_int8


class Enlarged(Residual):
    """Ahead of it a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(3, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.enlarge(x))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    _, integers = in_int8(Enlarged(), torch.randn(1, 3, 8, 8))
    path = tmp_path_factory.mktemp("int8") / "model.tflite"
    save(convert(integers).graph, path)
    return path


def test_a_file_with_right_biases_passes(file: Path) -> None:
    demand_bias_scales(operators_in(file))


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"])
def test_a_bias_with_another_scale_is_caught(file: Path, kind: str) -> None:
    data = bytearray(file.read_bytes())
    _double_a_scale(data, _bias_of(data, kind))
    changed = file.with_name(f"{kind}.tflite")
    changed.write_bytes(data)
    with pytest.raises(VerificationError, match=f"bias of {kind}"):
        demand_bias_scales(operators_in(changed))


def _bias_of(data: bytearray, kind: str) -> fb.Tensor:
    model = fb.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    for place in range(graph.OperatorsLength()):
        operator = graph.Operators(place)
        if model.OperatorCodes(operator.OpcodeIndex()).BuiltinCode() == getattr(fb.BuiltinOperator, kind):
            return graph.Tensors(operator.Inputs(3 if kind == "TRANSPOSE_CONV" else 2))
    raise AssertionError(f"no {kind}")


def _double_a_scale(data: bytearray, tensor: fb.Tensor) -> None:
    scales = tensor.Quantization().ScaleAsNumpy()  # lies in ``data`` itself
    scales.setflags(write=True)
    scales[-1] *= 2


def test_the_summary_counts_operators_and_transposes(file: Path) -> None:
    assert summary(operators_in(file)).startswith("The file has 11 operators (2 CONV_2D, 1 ADD, ")
    assert summary(operators_in(file)).endswith("; no TRANSPOSE.")


def test_what_was_meant_for_integers_and_runs_in_float_is_listed(tmp_path: Path) -> None:
    """TFLite has no INT8 sine: quantized on both sides, it is float all the same."""

    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).sin())

    _, integers = in_int8(Wave(), torch.randn(1, 3, 8, 8))
    made = convert(integers)
    nodes = [operator.node for operator in save(made.graph, tmp_path / "model.tflite")]
    found = float_fallbacks(operators_in(tmp_path / "model.tflite"), nodes, made.program)
    assert [(decision.op, decision.outcome) for decision in found] == [("aten.sin", "float")]
