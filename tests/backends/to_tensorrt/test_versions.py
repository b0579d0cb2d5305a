from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planish
from planish.backends.to_tensorrt import rtx
from planish.backends.to_tensorrt.integers import fused_projections
from planish.backends.to_tensorrt.versions import oldest_version, suit
from planish.compiler.targets import find_profile
from planish.passes.quantize_int8 import QuantizeInt8
from tests.backends.to_tensorrt.cases import attention
from tests.backends.to_tensorrt.graphs import Case, Graph


def computed(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feed)[0]
    return found


def suited(case: Case, version: tuple[int, int], opset: int) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """The model after ``suit``, and what it computed before and computes now."""
    graph = Graph(opset)
    proto = graph.proto(case(graph))
    rng = np.random.default_rng(0)
    shapes = {each.name: [size.dim_value for size in each.type.tensor_type.shape.dim] for each in graph.inputs}
    feed = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    before = computed(proto, feed)
    model = suit(ir.from_proto(proto), version)
    after = ir.to_proto(model)
    return model, before, computed(after, feed)


def gemm_attention(g: Graph) -> str:
    """As GPT-2 has it: a Gemm with a bias, Split in three."""
    x = g.quantized(g.input(17, 64))
    whole = g.op("Gemm", x, g.weight(64, 192, axis=1), g.floats(192))
    g.nodes.append(onnx.helper.make_node("Split", [whole], ["q", "k", "v"], name="split", axis=1, num_outputs=3))
    q, k, v = (g.op("Transpose", g.op("Reshape", part, g.ints(1, 17, 4, 16)), perm=[0, 2, 1, 3]) for part in "qkv")
    scores = g.op("Softmax", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    return g.op("MatMul", scores, v)


@pytest.mark.parametrize(("version", "opset"), [((10, 3), 19), ((8, 5), 18)])
@pytest.mark.parametrize("case", [attention, gemm_attention])
def test_a_fused_projection_becomes_three_layers_that_compute_the_same(
    case: Case, version: tuple[int, int], opset: int
) -> None:
    model, before, after = suited(case, version, opset)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert not [*fused_projections(model.graph)]
    layers = [node for node in model.graph if node.op_type in ("MatMul", "Gemm")]
    assert len(layers) == 3 + 2


def test_a_projection_of_floats_stays_one_layer() -> None:
    def case(g: Graph) -> str:
        y = g.op("MatMul", g.input(1, 17, 64), g.floats(64, 192))
        parts = [g.op("Slice", y, g.ints(64 * at), g.ints(64 * at + 64), g.ints(2)) for at in range(3)]
        q, k, v = (g.op("Transpose", g.op("Reshape", part, g.ints(1, 17, 4, 16)), perm=[0, 2, 1, 3]) for part in parts)
        return g.op("MatMul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), v)

    model, before, after = suited(case, (10, 3), 19)
    np.testing.assert_array_equal(after, before)
    assert sum(node.op_type == "MatMul" for node in model.graph) == 3


@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization_in_single_steps_computes_the_same(bias: bool) -> None:
    def case(g: Graph) -> str:
        x = g.input(4, 6, 8)
        rest = [g.floats(6, 8)] if bias else []
        return g.op("LayerNormalization", x, g.floats(6, 8), *rest, axis=-2, epsilon=1e-3)

    model, before, after = suited(case, (8, 5), 17)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    assert "LayerNormalization" not in {node.op_type for node in model.graph}
    kept, *_ = suited(case, (8, 6), 17)
    assert "LayerNormalization" in {node.op_type for node in kept.graph}


class Attention(nn.Module):
    """As timm writes it: one projection, reshaped, permuted and unbound."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        result: Tensor = x + self.out(mixed)
        return result


@pytest.mark.parametrize("target", ["jetson-orin", "jetson-agx-xavier"])
def test_attention_of_a_vision_transformer_runs_in_int8_whole(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 32)
    result = planish.compile(Attention().eval(), target, x, passes=[QuantizeInt8()], output=tmp_path / "artifact")
    torch.testing.assert_close(result.run(x), result.program(x), atol=1e-4, rtol=1e-4)
    assert result.report.runtime_decisions == []
    if rtx.is_installed():
        assert any("4 of 4 layers planned in INT8 run in INT8" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("versions", "oldest"),
    [
        (">=10.3,<10.4", (10, 3)),
        ("==8.5", (8, 5)),
        ("~=11.4", (11, 4)),
        (">=10", (10, 0)),
        ("<11", (8, 5)),
        ("", (8, 5)),
    ],
)
def test_the_oldest_version_of_a_profile_is_the_one_that_is_served(versions: str, oldest: tuple[int, int]) -> None:
    profile = find_profile("jetson-orin")
    runtime = profile.runtime.model_copy(update={"versions": {"tensorrt": versions} if versions else {}})
    assert oldest_version(profile.model_copy(update={"runtime": runtime})) == oldest
