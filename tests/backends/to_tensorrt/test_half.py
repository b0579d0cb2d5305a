"""FP16 written into the graph, for TensorRT from version 11 on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import planish
from planish.backends.to_onnx.exporter import lower_any
from planish.backends.to_onnx.files import save
from planish.backends.to_onnx.reference import Reference
from planish.backends.to_tensorrt import rtx
from planish.backends.to_tensorrt.backend import HALF
from planish.backends.to_tensorrt.half import in_half
from planish.backends.to_tensorrt.integers import LAYERS
from planish.backends.to_tensorrt.versions import suit
from planish.compiler.half_precision import in_half_precision
from planish.compiler.trace import trace
from planish.compiler.verify import HALF_SLACK_DB, HALF_SNR_DB, compare, outputs_of, worst_snr
from planish.passes.quantize_int8 import QuantizeInt8
from tests.backends.to_onnx import family_layers, family_transformers
from tests.backends.to_onnx.families import Family
from tests.backends.to_tensorrt.device import profile
from tests.backends.to_tensorrt.graphs import Graph

QUICK = ("Bert", "GPT2", "Llama", "T5", "CLIP")
FAMILIES = [
    *family_layers.families(),
    *(each for each in family_transformers.families() if each.name.removeprefix("transformers-") in QUICK),
]


def types(model: ir.Model, *kinds: str) -> list[ir.DataType | None]:
    return [node.outputs[0].dtype for node in model.graph if node.op_type in kinds]


@pytest.mark.parametrize(
    "family",
    [pytest.param(each, id=each.name, marks=pytest.mark.slow if at % 12 else ()) for at, each in enumerate(FAMILIES)],
)
def test_a_model_in_half_is_as_near_as_rounding_each_result_to_half(family: Family, tmp_path: Path) -> None:
    if "transformers" in family.name:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    program = trace(family.build().eval(), family.inputs(2))
    model, _ = lower_any(program, 19)
    suit(model, (11, 0))
    tensors = [leaf.detach() for leaf in program.example_inputs.leaves() if isinstance(leaf, Tensor)]
    wanted = [value.dtype for value in model.graph.outputs]
    save(model, tmp_path / "float.onnx")
    exact = [[value] for value in Reference(tmp_path / "float.onnx")(tensors)]
    assert in_half(model, tensors) is None
    assert [value.dtype for value in model.graph.outputs] == wanted
    save(model, tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    got = [[value] for value in Reference(tmp_path / "model.onnx")(tensors)]
    found = worst_snr(compare(exact, got))
    runs = (program, in_half_precision(program))
    rounded = worst_snr(compare(*(outputs_of(run, [program.example_inputs]) for run in runs)))
    assert found is None or found >= (HALF_SNR_DB if rounded is None else rounded) - HALF_SLACK_DB


def half(case: Callable[[Graph], str], *inputs: Tensor, opset: int = 19) -> ir.Model:
    graph = Graph(opset)
    model = graph.model(case(graph))
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    assert in_half(model, inputs) is None
    return model


def computed(model: ir.Model, inputs: Tensor, folder: Path) -> np.ndarray:
    save(model, folder / "model.onnx")
    found: np.ndarray = Reference(folder / "model.onnx")([inputs])[0].numpy()
    return found


X = torch.linspace(-3, 3, 64).reshape(1, 64)


def test_what_leaves_the_range_on_the_samples_stays_in_32_bits(tmp_path: Path) -> None:
    def case(g: Graph) -> str:
        large = g.op("Mul", g.input(1, 64), g.constant(np.float32(30000)))
        return g.op("Mul", g.op("Mul", large, g.constant(np.float32(1e-4))), g.constant(np.float32(2)))

    model = half(case, X)
    assert types(model, "Mul") == [ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.FLOAT16]
    np.testing.assert_allclose(computed(model, X, tmp_path), 6 * X.numpy(), rtol=2e-3)


def test_an_epsilon_that_16_bits_do_not_hold_stays(tmp_path: Path) -> None:
    def case(g: Graph) -> str:
        x = g.op("Mul", g.input(1, 64), g.constant(np.float32(1)))
        return g.op("Div", g.constant(np.float32(1)), g.op("Add", g.op("Sub", x, x), g.constant(np.float32(1e-8))))

    model = half(case, X)
    assert types(model, "Add") == [ir.DataType.FLOAT]
    np.testing.assert_allclose(computed(model, X, tmp_path), 1e8, rtol=1e-3)


def test_squares_sums_and_softmax_stay_and_what_only_moves_goes_with_them() -> None:
    def case(g: Graph) -> str:
        x = g.op("Mul", g.input(1, 64), g.constant(np.float32(2)))
        mean = g.op("ReduceMean", g.op("Mul", x, x), g.ints(1), keepdims=1)
        return g.op("Relu", g.op("Transpose", g.op("Softmax", g.op("Add", x, mean), axis=1), perm=[1, 0]))

    model = half(case, X)
    assert types(model, "Mul") == [ir.DataType.FLOAT16, ir.DataType.FLOAT]
    assert types(model, "ReduceMean", "Softmax", "Transpose") == [ir.DataType.FLOAT] * 3
    assert types(model, "Add", "Relu") == [ir.DataType.FLOAT16] * 2


def test_positions_and_masks_that_come_from_whole_numbers_stay() -> None:
    def case(g: Graph) -> str:
        x = g.input(1, 64)
        places = g.op("Cast", g.op("Shape", x), to=1)
        return g.op("Mul", x, g.op("Slice", g.op("Mul", places, g.constant(np.float32(3))), g.ints(0), g.ints(1)))

    assert types(half(case, X), "Mul") == [ir.DataType.FLOAT, ir.DataType.FLOAT16]


@pytest.mark.parametrize(("scale", "opset", "kept"), [(0.05, 19, False), (1e-6, 19, True), (0.05, 17, True)])
def test_scales_are_in_16_bits_where_these_hold_them_and_the_opset_has_them(
    scale: float, opset: int, kept: bool
) -> None:
    model = half(lambda g: g.op("MatMul", g.quantized(g.input(1, 64), scale), g.weight(64, 8, axis=1)), X, opset=opset)
    first, second = types(model, "DequantizeLinear")
    assert first is (ir.DataType.FLOAT if kept else ir.DataType.FLOAT16)
    assert second is (ir.DataType.FLOAT if opset < 19 else ir.DataType.FLOAT16)
    assert types(model, "MatMul") == [ir.DataType.FLOAT16]


def test_a_model_with_branches_is_left_as_it_is() -> None:
    graph = Graph()
    x = graph.input(1, 4)
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", [x], ["n"])], "b", [], [onnx.helper.make_tensor_value_info("n", 1, (1, 4))]
    )
    y = graph.op("If", graph.constant(np.bool_(True)), then_branch=branch, else_branch=branch)
    model = graph.model(y)
    assert in_half(model, [torch.zeros(1, 4)]) == "it has branches or loops"
    assert ir.DataType.FLOAT16 not in {value.dtype for node in model.graph for value in node.outputs}


class Net(nn.Module):
    """Convolutions, attention and a normalization; the first convolution stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 2, 1)
        self.norm, self.attention, self.head = (
            nn.LayerNorm(32),
            nn.MultiheadAttention(32, 4, batch_first=True),
            nn.Linear(32, 8),
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(self.stem(x).relu()).flatten(2).transpose(1, 2))
        result: Tensor = self.head(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return result


class Growing(nn.Module):
    """The second convolution gives what float16 does not hold; the third one's weights are too small for its scales."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, bias=False) for _ in range(4))
        with torch.no_grad():
            for weight, size in zip(self.parameters(), (1, 1e6, 1e-6, 1), strict=True):
                weight.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x)
        return x


def test_no_cast_parts_a_layer_that_stays_in_32_bits_from_what_dequantizes_its_operands(tmp_path: Path) -> None:
    torch.manual_seed(0)
    target, x = profile(tensorrt=">=11.4,<12"), torch.randn(2, 32, 16, 16)
    result = planish.compile(Growing().eval(), target, x, passes=[QuantizeInt8()], output=tmp_path / "artifact")
    model = ir.load(tmp_path / "artifact" / "model.onnx")
    layers = [node for node in model.graph if node.op_type == "Conv"]
    assert {node.outputs[0].dtype for node in layers} == {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    for node in layers:
        for value in node.inputs[:2] if node.outputs[0].dtype is ir.DataType.FLOAT else ():
            source = value.producer() if value is not None else None
            assert source is not None and source.op_type == "DequantizeLinear"
    if rtx.is_installed():
        assert result.report.runtime_decisions == []
        assert any("4 of 4 layers planned in INT8 run in INT8" in note for note in result.report.notes)


@pytest.mark.parametrize("passes", [[], [QuantizeInt8()]], ids=["float", "int8"])
def test_a_profile_of_tensorrt_11_gets_half_and_nvidias_builder_runs_it_so(
    passes: list[QuantizeInt8], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    target, x = profile(tensorrt=">=11.4,<12"), torch.randn(2, 3, 16, 16)
    result = planish.compile(Net().eval(), target, x, passes=passes, output=tmp_path / "artifact")
    assert HALF in result.report.notes and result.report.runtime_decisions == []
    model = ir.load(tmp_path / "artifact" / "model.onnx")
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
    assert set(types(model, *LAYERS)) == {ir.DataType.FLOAT16}
    if not rtx.is_installed():
        return
    verdict = rtx.ask(tmp_path / "artifact" / "model.onnx", "SM86")
    assert not verdict.refusal
    products = [
        layer
        for layer in verdict.layers
        if {*layer.nodes} & {str(node.name) for node in model.graph if node.op_type in LAYERS}
    ]
    kinds = {kind for layer in products if layer.kind in ("correlation", "gemm") for kind in layer.dtypes[:2]}
    assert kinds <= {"Half", "Int8"} and kinds
    if passes:
        assert "Int8" in kinds and any("planned in INT8 run in INT8" in note for note in result.report.notes)
