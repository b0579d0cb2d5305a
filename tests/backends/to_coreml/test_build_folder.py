"""The folder for a Mac: verify.py runs here with coremltools' own classes, on a stand-in for Apple's runtime."""

from __future__ import annotations

import json
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

pytest.importorskip("coremltools")

from coremltools.models import MLModel
from coremltools.models import compute_plan as plans
from coremltools.models.compute_device import MLCPUComputeDevice, MLNeuralEngineComputeDevice

import planish
from planish.backends.to_coreml import runner
from planish.backends.to_coreml.backend import FILE, CoreMLBackend
from planish.backends.to_coreml.evaluator import Evaluator
from planish.backends.to_coreml.interface import Image
from planish.backends.to_coreml.mil import WEIGHTS
from planish.compiler.on_device import import_report
from planish.compiler.plugins import registry
from planish.compiler.report import Report
from tests.backends.to_coreml.packaged import program_of

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = ("cat", "dog", "bird", "fish")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4), nn.Softmax(-1)).eval()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coreml") / "artifact"
    planish.compile(net(), "iphone-15", IMAGES, passes=[], output=folder)
    return folder


@pytest.fixture
def artifact(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "artifact"))


def predicted(folder: Path, error: float) -> Any:
    """What ``predict`` gives, by the reference evaluation: it takes arrays of the declared types, images from PIL."""
    evaluator = Evaluator(folder / FILE)
    kinds = {feature.name: feature.kind for feature in evaluator.package.input_features}

    answers: dict[bytes, dict[str, Any]] = {}

    def predict(self: MLModel, data: dict[str, Any], state: Any = None) -> dict[str, Any]:
        assert data.keys() == kinds.keys()
        tensors = {name: _tensor(value, kinds[name] == "imageType", evaluator.package.inputs[name].dtype)
                   for name, value in data.items()}  # fmt: skip
        asked = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
        if asked not in answers:  # asked a hundred times to be timed
            answers[asked] = {name: value if isinstance(value, (str, dict)) else (value * (1 + error)).numpy()
                              for name, value in evaluator(tensors).items()}  # fmt: skip
        return answers[asked]

    return predict


def _tensor(value: Any, image: bool, dtype: torch.dtype) -> torch.Tensor:
    import numpy as np
    from PIL import Image as Picture

    assert isinstance(value, Picture.Image if image else np.ndarray)
    array = torch.from_numpy(np.array(value))
    return array.permute(2, 0, 1)[None].to(dtype) if image else array


def planned(*arguments: Any, **options: Any) -> Any:
    """A plan of coremltools' own data classes: a constant, a convolution on the Neural Engine, softmax on the CPU."""
    made, named = plans.MLModelStructureProgramOperation, plans.MLModelStructureProgramNamedValueType
    kinds = (("const", "weight"), ("ios18.conv", "y"), ("ios18.softmax", "z"))
    operations = [made({}, kind, [named(name, None)], [], None) for kind, name in kinds]
    devices = {"y": MLNeuralEngineComputeDevice, "z": MLCPUComputeDevice}
    block = plans.MLModelStructureProgramBlock([], operations, ["z"])
    program = plans.MLModelStructureProgram({"main": plans.MLModelStructureProgramFunction([], block)})
    plan = mock.create_autospec(plans.MLComputePlan, instance=True)
    plan.model_structure = plans.MLModelStructure(None, program, None)

    def usage(operation: Any) -> Any:
        device = devices.get(operation.outputs[0].name)
        made = None if device is None else object.__new__(device)
        return None if made is None else plans.MLComputePlanDeviceUsage(made, [made])

    plan.get_compute_device_usage_for_mlprogram_operation.side_effect = usage
    return plan


def verified(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str, error: float = 1e-4) -> int:
    """The exit code of verify.py on a Mac whose outputs are off by the relative ``error``."""
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(sys, "argv", ["verify.py", "--seconds", "0.01", *options])
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    try:
        with (
            mock.patch.object(MLModel, "predict", autospec=True, side_effect=predicted(folder, error)),
            mock.patch.object(MLModel, "get_compiled_model_path", autospec=True, return_value="model.mlmodelc"),
            mock.patch.object(plans.MLComputePlan, "load_from_path", autospec=True, side_effect=planned),
            pytest.raises(SystemExit) as ended,
        ):
            runpy.run_path(str(folder / "verify.py"), run_name="__main__")
    finally:
        for name in ("machine", "samples"):
            sys.modules.pop(name, None)
    return int(ended.value.code or 0)


def test_what_verify_py_finds_is_imported_into_the_report(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verified(artifact, monkeypatch, "CPU_AND_NE") == 0
    import_report(artifact, artifact / "device_report.json")
    (found,) = Report.load(artifact / "report.json").on_device
    assert found.target == "iphone-15" and found.device["units"] == "CPU_AND_NE" and found.batch == 1
    assert found.outputs[0].snr_db == pytest.approx(80, abs=0.1)
    assert [(each["type"], each["unit"]) for each in found.layers] == [
        ("ios18.conv", "Neural Engine"), ("ios18.softmax", "CPU"),
    ]  # fmt: skip
    assert found.engine_bytes == sum(each.stat().st_size for each in (artifact / FILE).rglob("*") if each.is_file())


def test_outputs_that_are_off_are_told(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(artifact, monkeypatch, error=0.1) == 1
    assert "20.0 dB from the expected ones, 30 dB is the least" in capsys.readouterr().err


def test_a_damaged_package_is_told_before_anything_runs(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = artifact / FILE / WEIGHTS / "weight.bin"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert verified(artifact, monkeypatch) == 1
    assert "weight.bin is damaged or was changed: copy it again." in capsys.readouterr().err


def test_images_and_scores_go_through_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CoreMLBackend(images={"input": Image(scale=1 / 58, bias=-2.0)}, labels=LABELS)
    program = program_of(net(), IMAGES)
    backend.lower(program, registry().find_profile("iphone-15"), tmp_path)
    names = backend.write_build_files(tmp_path, registry().find_profile("iphone-15"))
    assert all((tmp_path / name).is_file() for name in names)
    assert verified(tmp_path, monkeypatch) == 0
    told = json.loads((tmp_path / "build.json").read_text())
    assert told["inputs"][0]["image"] and told["outputs"][0]["labels"] == [*LABELS]


def test_on_a_mac_an_artifact_runs_through_predict(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = planish.load(artifact).run(IMAGES)
    monkeypatch.setattr(runner, "ON_APPLE", True)
    with mock.patch.object(MLModel, "predict", autospec=True, side_effect=predicted(artifact, 0.5)) as predict:
        assert torch.equal(planish.load(artifact).run(IMAGES), wanted * 1.5)
    assert predict.call_count == 1


def test_a_classifier_s_label_and_scores_come_back_as_apple_gives_them() -> None:
    scores = {"cat": 0.25, "dog": 0.75}
    assert runner._taken("dog") == "dog" and runner._taken(scores) is scores


@pytest.mark.skipif(sys.platform == "darwin", reason="on a Mac it runs")
def test_without_a_mac_the_script_says_so(artifact: Path) -> None:
    ran = subprocess.run([sys.executable, "verify.py"], cwd=artifact, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert ran.stderr.strip() == "Stopped: Core ML runs on macOS only: copy this folder to a Mac."
