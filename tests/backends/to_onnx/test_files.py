"""The written file: read by every reader, the same bytes each time, and never half of it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from planish.backends.to_onnx import files
from planish.backends.to_onnx.lower import to_onnx
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace

SAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Large and small tensors of several types; one is stored transposed, when it is written."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.linear = nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Linear(14, 30)
        self.register_buffer("places", torch.arange(300) % 14)
        self.coarse = nn.Parameter(torch.randn(14, 700).half())

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.linear(x).sum() + x[..., self.places].mean((1, 2)) + (x @ self.coarse.float()).mean()


@pytest.fixture
def model() -> ir.Model:
    return to_onnx(trace(Net(), Inputs((SAMPLE,))), 20)


def test_the_file_is_valid_and_onnx_reads_back_every_tensor(model: ir.Model, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    files.save(model, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    read = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer
    }
    assert read.keys() == model.graph.initializers.keys()
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        assert (read[name] == value.const_value.numpy()).all()


def test_onnx_runtime_and_openvino_compute_what_pytorch_does(model: ir.Model, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    files.save(model, tmp_path / "m.onnx")
    wanted = Net().eval()(SAMPLE).detach().numpy()
    (got,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": SAMPLE.numpy()})
    assert abs(got - wanted).max() < 1e-4 * abs(wanted).max()
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (other,) = compiled({"x": SAMPLE.numpy()}).values()
    assert abs(other - wanted).max() < 1e-3 * abs(wanted).max()


def test_the_same_model_gives_the_same_bytes(model: ir.Model, tmp_path: Path) -> None:
    again = to_onnx(trace(Net(), Inputs((SAMPLE,))), 20)
    written = []
    for index, one in enumerate((model, model, again)):
        files.save(one, tmp_path / f"{index}.onnx")
        written.append((tmp_path / f"{index}.onnx").read_bytes())
    assert written[0] == written[1] == written[2]


def test_a_failure_leaves_the_earlier_file_and_nothing_else(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"earlier")

    def full(tensor: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_write_data", full)
    with pytest.raises(OSError, match="No space left"):
        files.save(model, tmp_path / "m.onnx")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("m.onnx", b"earlier")]
    assert "conv.weight" in model.graph.initializers  # the model is whole again


def test_above_the_limit_the_weights_lie_beside_the_model(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(files, "_SINGLE_FILE", 1000)
    files.save(model, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
