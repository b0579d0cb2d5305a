from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import planish
from planish.backends.to_tensorrt import rtx
from planish.backends.to_tensorrt.backend import FILE, NOT_TENSORRT, TensorRtBackend
from planish.compiler.errors import UserError
from planish.compiler.result import Result
from planish.compiler.targets import find_profile


class Block(nn.Module):
    """A stem of three channels, a residual block with a convolution as its shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first, self.second = nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.shortcut = nn.Conv2d(16, 32, 1, 2)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.second(self.first(x).relu()) + self.shortcut(x)).relu()
        result: Tensor = self.head(self.norm(x.mean((2, 3))))
        return result


def compiled(target: str, folder: Path, **options: Any) -> Result:
    torch.manual_seed(0)
    return planish.compile(Block().eval(), target, torch.randn(2, 3, 16, 16), output=folder / "artifact", **options)


def graph_of(result: Result) -> onnx.GraphProto:
    return onnx.load(result.artifact.folder / FILE).graph


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in graph.node for output in node.output}


@pytest.fixture(scope="module")
def for_orin(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return compiled("jetson-orin", tmp_path_factory.mktemp("orin"))


@pytest.fixture(scope="module")
def for_xavier(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return compiled("jetson-agx-xavier", tmp_path_factory.mktemp("xavier"))


def test_a_jetson_gets_its_own_backend(for_orin: Result) -> None:
    assert for_orin.report.backend == "tensorrt"
    assert [step.compression for step in for_orin.report.steps if step.outcome != "exact"] == ["quantize-int8"]


def test_every_input_of_a_quantized_layer_is_dequantized_and_symmetric(for_orin: Result) -> None:
    graph = graph_of(for_orin)
    made_by, constants = producers(graph), {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "MatMul")]
    in_integers = [node for node in layers if node.name != "conv2d"]  # the stem has three channels
    assert len(in_integers) == 4 and len(layers) == 5
    for node in in_integers:
        assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not constants[node.input[2]].any() and constants[node.input[2]].dtype == np.int8


def test_the_shortcut_of_a_residual_sum_is_quantized_and_the_deeper_branch_is_not(for_orin: Result) -> None:
    graph = graph_of(for_orin)
    made_by = producers(graph)
    (add,) = (node for node in graph.node if node.op_type == "Add")
    kinds = {made_by[name].op_type: made_by[name] for name in add.input}
    assert kinds.keys() == {"Conv", "DequantizeLinear"}
    quantize = made_by[kinds["DequantizeLinear"].input[0]]
    shortcut = made_by[quantize.input[0]]
    assert {prop.key: prop.value for prop in shortcut.metadata_props}["planish.module"] == "shortcut"


def test_outputs_are_those_of_the_program_and_the_report_says_who_computed_them(for_orin: Result) -> None:
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(for_orin.run(x), for_orin.program(x), atol=1e-4, rtol=1e-4)
    assert NOT_TENSORRT in for_orin.report.notes


def test_its_time_is_an_estimate_and_bench_says_where_to_measure(for_orin: Result) -> None:
    assert for_orin.report.result is not None and for_orin.report.result.latency is not None
    assert for_orin.report.result.latency.source == "estimated"
    assert "build.py" in (TensorRtBackend().cannot_time(find_profile("jetson-orin")) or "")


def test_a_profile_of_tensorrt_8_gets_float_weights_and_no_layer_normalization(for_xavier: Result) -> None:
    graph = graph_of(for_xavier)
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    assert "LayerNormalization" not in {node.op_type for node in graph.node}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            assert producers(graph)[node.input[0]].op_type == "QuantizeLinear"
    assert all(array.dtype != np.int8 or not array.any() for array in constants.values())
    assert any("engine in INT8" in note for note in for_xavier.report.notes)


def test_float_weights_are_quantized_to_the_integers_that_the_pass_chose(for_orin: Result, for_xavier: Result) -> None:
    new, old = graph_of(for_orin), graph_of(for_xavier)
    integers = {each.name: numpy_helper.to_array(each) for each in new.initializer if each.name.endswith("int8")}
    constants = {each.name: numpy_helper.to_array(each) for each in old.initializer}
    found = 0
    for node in old.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in constants:
            (axis,) = (attribute.i for attribute in node.attribute)
            scale = constants[node.input[1]].reshape(
                [-1 if at == axis else 1 for at in range(constants[node.input[0]].ndim)]
            )
            rounded = np.round(constants[node.input[0]] / scale).astype(np.int8)
            found += any(np.array_equal(rounded, known) for known in integers.values())
    assert found == len(integers) == 3  # the convolutions; the head is stored transposed


def test_both_versions_compute_the_same(for_orin: Result, for_xavier: Result) -> None:
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(for_orin.run(x), for_xavier.run(x), atol=1e-5, rtol=1e-5)


def test_files_for_tensorrt_8_claim_no_newer_opset_and_ir_version(for_xavier: Result) -> None:
    model = onnx.load(for_xavier.artifact.folder / FILE)
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    onnx.checker.check_model(model)


@pytest.mark.skipif(not rtx.is_installed(), reason="NVIDIA's builder is in the extra tensorrt")
@pytest.mark.parametrize("target", ["jetson-orin", "jetson-agx-xavier"])
def test_nvidias_builder_runs_in_int8_what_was_planned_in_int8(
    target: str, for_orin: Result, for_xavier: Result
) -> None:
    report = (for_orin if target == "jetson-orin" else for_xavier).report
    assert report.runtime_decisions == []
    architecture = {"jetson-orin": "SM86", "jetson-agx-xavier": "SM80"}[target]
    (told,) = (note for note in report.notes if "TensorRT-RTX" in note)
    assert f"nearest architecture {architecture} (no device test): 4 of 4 layers" in told


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.pool(x)
        return result


def test_what_the_parser_would_reject_is_told_before_any_work_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Pool without dilation.*in pool") as raised:
        planish.compile(Odd().eval(), "jetson-orin", torch.randn(2, 3, 16, 16), output=tmp_path / "artifact")
    assert "Jetson AGX Orin" in str(raised.value) and not (tmp_path / "artifact").exists()
    (finding,) = planish.check(Odd().eval(), "jetson-orin", torch.randn(2, 3, 16, 16))
    assert finding.check.severity == "error" and finding.check.source.startswith("https://")


def test_a_model_without_integers_is_lowered_as_well(tmp_path: Path) -> None:
    result = compiled("jetson-orin", tmp_path, passes=[])
    assert "QuantizeLinear" not in {node.op_type for node in graph_of(result).node}
    assert result.report.errors[0].max_relative < 1e-4
