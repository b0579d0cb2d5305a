"""Qualcomm's NPUs: what the QNN execution provider takes, by its documentation. No such device is here."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import planish
from planish.backends.to_onnx.qnn import OPERATORS, RULES, half_quantized, is_whole, suit
from planish.compiler.hardware import HardwareProfile, load_profile
from planish.compiler.on_device import build_scripts
from planish.compiler.targets import find_profile
from tests.backends.to_tensorrt.graphs import Graph

TARGET = "snapdragon-x-elite"


def with_16_bits() -> HardwareProfile:
    profile = find_profile(TARGET)
    assert profile.quantization is not None
    limits = profile.quantization.model_copy(update={"activation_dtype": "uint16"})
    return profile.model_copy(update={"quantization": limits})


class Net(nn.Module):
    """Convolutions with a shortcut, a head in two dimensions, words in three."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.branch = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)
        self.wide = nn.ConvTranspose2d(16, 8, 2)
        self.words, self.mix = nn.Embedding(50, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.stem(image)).relu()
        x = (x + self.branch(x)).relu()
        seen = x.mean((2, 3)) + self.mix(self.words(ids)).sigmoid().mean(1)
        return self.head(seen), self.wide(x)


def compiled(target: str | HardwareProfile) -> planish.Result:
    torch.manual_seed(0)
    rows = [(torch.randn(8, 3, 12, 12), torch.randint(50, (8, 6))) for _ in range(3)]
    return planish.compile(Net().eval(), target, calibration=rows, passes=[planish.QuantizeInt8()])


@pytest.mark.parametrize("bits", [8, 16])
def test_every_quantized_layer_is_taken_whole_and_every_size_is_a_number(bits: int) -> None:
    result = compiled(TARGET if bits == 8 else with_16_bits())
    model = ir.load(result.artifact.folder / "model.onnx")
    weighted = [node for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert sorted(node.op_type for node in weighted) == ["Conv", "Conv", "Gemm", "MatMul"]
    assert all(map(is_whole, weighted)) and not [*half_quantized(model.graph)]
    zeros = [node.inputs[2].const_value for node in model.graph if node.op_type == "QuantizeLinear"]  # type: ignore[union-attr]
    assert {str(zero.dtype) for zero in zeros if zero is not None} == {f"UINT{bits}"}
    assert all(isinstance(size, int) for value in model.graph.inputs for size in value.shape or ["?"])
    broken = {node.op_type for rule in RULES for node in rule.offenders(model.graph)}
    assert not broken, broken
    assert model.graph.opset_imports[""] == (20 if bits == 8 else 21)


def test_more_bits_of_activations_are_more_accurate() -> None:
    ratios = []
    for target in (TARGET, with_16_bits()):
        result = compiled(target).report.result
        assert result is not None and result.snr_db is not None
        ratios.append(result.snr_db)
    assert ratios[1] > ratios[0] + 3


def test_biases_are_integers_with_the_scale_of_input_times_weight() -> None:
    result = compiled(TARGET)
    model = ir.load(result.artifact.folder / "model.onnx")
    for node in model.graph:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        parts = [value.producer() for value in node.inputs if value is not None]
        x, w, b = (part.inputs[1].const_value.numpy() for part in parts)  # type: ignore[union-attr]
        assert b == pytest.approx(x * w) and parts[2].inputs[0].dtype == ir.DataType.INT32  # type: ignore[union-attr]


def broken_by(graph: Graph, output: str) -> set[str]:
    found = graph.model(output)
    return {rule.name for rule in RULES if [*rule.offenders(found.graph)]}


def test_each_rule_finds_what_it_is_for_and_nothing_else() -> None:
    graph = Graph()
    assert broken_by(graph, graph.op("Relu", graph.input(1, 4))) == set()
    graph = Graph()
    assert broken_by(graph, graph.op("Erf", graph.input(1, 4))) == {"qnn-operators"}
    graph = Graph()
    assert broken_by(graph, graph.op("Gather", graph.input(1, 4), graph.ints(-1), axis=1)) == {"qnn-positive-indices"}
    graph = Graph()
    x = graph.quantized(graph.input(1, 16, 8, 8), 0.1)
    assert broken_by(graph, graph.op("Conv", x, graph.weight(16, 16, 3, 3, axis=0))) == {"qnn-quantized-whole"}
    graph = Graph()
    x = graph.quantized(graph.input(1, 16, 8, 8), 0.1)
    y = graph.op("Relu", graph.op("Conv", x, graph.weight(16, 16, 3, 3, axis=0)))
    assert broken_by(graph, graph.quantized(y, 0.1)) == set()


def test_a_dynamic_size_is_an_error_of_a_file_from_elsewhere(tmp_path: Path) -> None:
    x = torch.randn(2, 8)
    folder = planish.compile(nn.Linear(8, 8).eval(), "t4", x, passes=[]).artifact.folder
    found = planish.check_file(folder / "model.onnx", TARGET)
    assert [(finding.check.name, finding.check.severity) for finding in found] == [("qnn-fixed-shapes", "error")]
    assert found[0].check.source.startswith("https://onnxruntime.ai/docs/execution-providers/QNN")


def test_check_names_the_operators_that_the_cpu_will_run() -> None:
    class Errors(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erf(x)

    findings = planish.check(Errors(), TARGET, torch.randn(2, 8))
    assert [(finding.check.name, finding.check.severity) for finding in findings] == [("qnn-operators", "warning")]
    assert "Erf" not in OPERATORS


def test_a_graph_that_is_float_stays_as_it_is() -> None:
    graph = Graph()
    model = graph.model(graph.op("Sum", graph.op("MatMul", graph.input(1, 4), graph.floats(4, 4)), graph.floats(4)))
    before = ir.to_proto(model).SerializeToString()
    program = planish.trace(nn.Linear(4, 4), torch.randn(2, 4))
    assert ir.to_proto(suit(model, program)).SerializeToString() == before


def test_a_new_device_is_one_file_that_names_its_runtime(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "hwprofiles" / f"{TARGET}.toml").read_text()
    (tmp_path / "board.toml").write_text(text.replace(f'name = "{TARGET}"', 'name = "board"', 1))
    folder = planish.compile(
        nn.Linear(8, 8).eval(), tmp_path / "board.toml", torch.randn(2, 8), passes=[]
    ).artifact.folder
    told = (folder / "build.json").read_text()
    assert '"QNNExecutionProvider"' in told and '"onnxruntime-qnn": ">=2.0"' in told and '"target": "board"' in told
    assert load_profile(tmp_path / "board.toml").name == "board"
    onnx.checker.check_model(onnx.load(folder / "model.onnx"), full_check=True)
    assert "check.py" in build_scripts(folder, tmp_path / "board.toml", tmp_path / "scripts")
