"""The accelerator beside a Jetson's GPU: what NVIDIA's pages say that it runs. No such device is here."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import planish
from planish.backends.to_tensorrt.dla import RULES
from planish.compiler.errors import UserError
from tests.backends.to_tensorrt.device import Device, build_files, device, profile, refusal
from tests.backends.to_tensorrt.graphs import Graph

TARGET = "jetson-agx-orin-64-dla"


def broken_by(graph: Graph, output: str) -> set[str]:
    found = onnx.shape_inference.infer_shapes(graph.proto(output))
    model = __import__("onnx_ir").from_proto(found)
    return {rule.name for rule in RULES if [*rule.offenders(model.graph)]}


def test_each_rule_finds_what_it_is_for_and_nothing_else() -> None:
    graph = Graph()
    assert (
        broken_by(graph, graph.op("Relu", graph.op("Conv", graph.input(1, 3, 8, 8), graph.floats(4, 3, 3, 3)))) == set()
    )
    graph = Graph()
    assert broken_by(graph, graph.op("Erf", graph.input(1, 4))) == {"dla-operators"}
    graph = Graph()
    assert broken_by(graph, graph.op("MatMul", graph.input(4, 4), graph.input(4, 4))) == {"dla-constant-factor"}
    graph = Graph()
    assert broken_by(graph, graph.op("Relu", graph.input(1, 8193))) == {"dla-sizes"}
    graph = Graph()
    x = graph.quantized(graph.input(1, 16, 8, 8))
    assert broken_by(graph, graph.op("Conv", x, graph.floats(16, 16, 3, 3))) == {"dla-no-explicit-quantization"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.erf(self.conv(x)).mean((2, 3)))
        return result


def test_a_model_is_lowered_with_fixed_shapes_and_what_falls_back_is_told(tmp_path: Path) -> None:
    result = planish.compile(
        Net().eval(), TARGET, torch.randn(4, 3, 8, 8), [torch.randn(4, 3, 8, 8)], output=tmp_path / "a"
    )
    told = json.loads((tmp_path / "a/build.json").read_text())
    assert told["precision"] == {"fp16": True, "int8": False, "dla": True, "sparse": False}
    assert told["inputs"][0]["shape"] == told["inputs"][0]["most"] == [1, 3, 8, 8]
    assert told["device"]["words"] == ["agx", "orin"], "what the device calls itself"
    script = (tmp_path / "a/build.sh").read_text()
    assert "--useDLACore=0" in script and "--allowGPUFallback" in script
    assert any("the GPU runs it. (aten.erf)" in note for note in result.report.notes), result.report.notes
    assert "quantize-int8" in result.report.not_planned


def test_dynamic_shapes_and_q_dq_are_errors_at_check_time(tmp_path: Path) -> None:
    folder = build_files(tmp_path / "gpu", profile())
    errors = {f.check.name for f in planish.check_file(folder / "model.onnx", TARGET) if f.check.severity == "error"}
    assert errors == {"dla-fixed-shapes", "dla-no-explicit-quantization"}
    with pytest.raises(UserError, match="runs no INT8"):
        planish.compile(
            Net().eval(), TARGET, torch.randn(4, 3, 8, 8), [torch.randn(4, 3, 8, 8)], passes=[planish.QuantizeInt8()]
        )


def test_the_scripts_build_for_the_dla_and_refuse_a_device_without_one(tmp_path: Path, cuda: Path) -> None:
    planish.compile(Net().eval(), TARGET, torch.randn(4, 3, 8, 8), passes=[], output=tmp_path / "files")
    of: Device = device(tmp_path, cuda, tmp_path / "files")
    of.environment["FAKE_DLA_CORES"] = "2"
    ran = of.build()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    of.environment["FAKE_DLA_CORES"] = "0"
    assert "this device has no DLA" in refusal(of.build())
    assert of.run("sh", "build.sh").returncode == 0
