from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import planish
from planish.compiler.errors import UserError
from planish.compiler.on_device import build_scripts, import_report
from planish.compiler.plugins import registry
from planish.compiler.report import Report
from tests.compiler.command_line import planish_says

MODEL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    planish.compile(MODEL.eval(), "jetson-orin", torch.randn(2, 3, 8, 8), output=tmp_path / "artifact", passes=[])
    return tmp_path / "artifact"


def measured(artifact: Path, **fields: Any) -> Path:
    """A device report as the scripts write it, ``fields`` changed."""
    sha256 = json.loads((artifact / "manifest.json").read_text())["files"]["model.onnx"]["sha256"]
    told = {
        "format": 1, "target": "jetson-agx-orin-64", "model_sha256": sha256,
        "device": {"device": "NVIDIA Jetson AGX Orin Developer Kit", "tensorrt": "10.3.0", "power mode": "MAXN"},
        "outputs": [{"name": "output_0", "snr_db": 61.5, "max_abs": 0.01}],
        "latency_ms": {"p50": 1.25, "p95": 1.5, "p99": 2.0}, "runs": 500, "batch": 1, "when": "2026-11-21T12:00:00Z",
        "engine_bytes": 1_000_000, "built_by": "Python API",
    }  # fmt: skip
    path = artifact.parent / "device_report.json"
    path.write_text(json.dumps({**told, **fields}))
    return path


def test_an_artifact_for_a_jetson_comes_with_scripts_and_its_size_is_that_of_the_model(artifact: Path) -> None:
    told = json.loads((artifact / "build.json").read_text())
    assert told["target"] == "jetson-agx-orin-64" and told["precision"]["int8"] is False
    assert {"build.py", "build.sh", "README.md", "sample_input_0.bin"} <= {path.name for path in artifact.iterdir()}
    assert planish.load(artifact).size_bytes == (artifact / "model.onnx").stat().st_size


def test_an_artifact_for_this_machine_comes_without(tmp_path: Path) -> None:
    planish.compile(MODEL.eval(), "x86-avx2", torch.randn(2, 3, 8, 8), output=tmp_path / "artifact", passes=[])
    assert not (tmp_path / "artifact/build.py").exists()


def test_what_the_device_measured_goes_into_the_report_beside_the_estimate(artifact: Path) -> None:
    estimate = Report.load(artifact / "report.json").result
    import_report(artifact, measured(artifact))
    report = Report.load(artifact / "report.json")
    assert report.result == estimate and report.on_device[0].latency_ms["p95"] == 1.5
    told = " ".join(str(report).split())
    assert "Measured on the device" in told and "p50 1.25 ms, p95 1.5 ms, p99 2 ms over 500 runs" in told
    assert "61.5 dB" in told and "power mode MAXN" in told
    planish.load(artifact)  # its sums still hold


def test_a_second_report_of_one_device_replaces_the_first_and_another_mode_stands_beside_it(artifact: Path) -> None:
    for p50, mode in ((1.25, "MAXN"), (1.2, "MAXN"), (3.0, "15W")):
        latency = {"p50": p50, "p95": 4.0, "p99": 5.0}
        import_report(artifact, measured(artifact, latency_ms=latency, device={"device": "Orin", "power mode": mode}))
    found = Report.load(artifact / "report.json").on_device
    assert [(each.device["power mode"], each.latency_ms["p50"]) for each in found] == [("MAXN", 1.2), ("15W", 3.0)]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_sha256": "0" * 64}, "tells of another model"),
        ({"target": "t4"}, "is for t4, the artifact for jetson-agx-orin-64"),
        ({"latency_ms": "fast"}, "is damaged"),
        ({"surprise": 1}, "is damaged"),
    ],
)
def test_a_report_that_does_not_belong_to_the_artifact_is_refused(
    fields: dict[str, Any], sentence: str, artifact: Path
) -> None:
    before = (artifact / "report.json").read_text()
    with pytest.raises(UserError, match=sentence):
        import_report(artifact, measured(artifact, **fields))
    assert (artifact / "report.json").read_text() == before


def test_a_report_that_is_not_there_is_told(artifact: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        import_report(artifact, artifact / "nothing.json")


def test_scripts_are_written_for_an_onnx_file_with_drawn_inputs(artifact: Path, tmp_path: Path) -> None:
    names = build_scripts(artifact / "model.onnx", "t4", tmp_path / "for-t4")
    told = json.loads((tmp_path / "for-t4/build.json").read_text())
    assert told["device"]["words"] == ["t4"] and told["inputs"][0]["shape"] == [1, 3, 8, 8]
    assert all((tmp_path / "for-t4" / name).is_file() for name in names)


def test_scripts_are_refused_where_they_would_do_harm_or_nothing(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        build_scripts(artifact / "model.onnx", "t4", artifact)
    with pytest.raises(UserError, match="there is no"):
        build_scripts(tmp_path / "nothing.onnx", "t4", tmp_path / "new")
    with pytest.raises(UserError, match=r"cannot use .* which is for jetson-agx-orin-64 by tensorrt"):
        build_scripts(artifact, "x86-avx2", tmp_path / "new")
    with pytest.raises(UserError, match="there is no"):
        build_scripts(tmp_path, "t4", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_both_are_commands(artifact: Path, tmp_path: Path) -> None:
    told, _ = planish_says("import-report", str(artifact), str(measured(artifact)))
    assert "p50 1.25 ms" in told
    folder = tmp_path / "scripts"
    told, _ = planish_says("build-scripts", "t4", "--model", str(artifact / "model.onnx"), "-o", str(folder))
    assert "README.md" in told and (folder / "build.sh").exists()


# ---------------------------------------------------------------------- every target


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One a backend."""
    folder = tmp_path_factory.mktemp("fleet")
    targets = ["t4", "graviton3", "raspberry-pi-5", "iphone-15"]
    fleet = planish.compile(
        MODEL.eval(), targets=targets, example_inputs=torch.randn(2, 3, 8, 8), passes=[], output=folder
    )
    assert not fleet.failures
    return {result.report.backend: folder / target for target, result in fleet.items()}


@pytest.mark.parametrize("target", registry().profiles)
def test_there_are_scripts_for_every_target(target: str, artifacts: dict[str, Path], tmp_path: Path) -> None:
    profile = registry().profiles[target]
    names = build_scripts(artifacts[profile.backend], target, tmp_path / "folder")
    assert all((tmp_path / "folder" / name).is_file() for name in names)
    assert {Path(name).suffix for name in names} >= {".py", ".md"}


def test_the_script_of_tflite_brings_a_report_back(artifacts: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(artifacts["tflite"], tmp_path / "device")
    ran = subprocess.run([sys.executable, "check.py"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = import_report(artifacts["tflite"], folder / "device_report.json")
    assert found.runs == 50 and found.built_by == "ai_edge_litert" and found.outputs[0].name == "expected_output_0.npy"


EDGETPU_COMPILER = """#!/bin/sh
cp model.tflite model_edgetpu.tflite
echo 'Number of operations that will run on CPU: 2' > model_edgetpu.log
"""


def test_the_script_for_the_edge_tpu_says_what_stays_on_the_cpu(artifacts: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    build_scripts(artifacts["tflite"], "coral-edgetpu", folder)
    command = ["sh", str(folder / "compile_edgetpu.sh")]
    ran = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert ran.returncode == 1 and "edgetpu_compiler was not found" in ran.stderr
    compiler = tmp_path / "edgetpu_compiler"
    for text, code, told in (
        (EDGETPU_COMPILER, 0, "2 operations will run on the CPU"),
        ("#!/bin/sh\nexit 1\n", 1, "edgetpu_compiler failed"),
        ("#!/bin/sh\n", 1, "wrote no model_edgetpu.tflite"),
    ):
        (folder / "model_edgetpu.tflite").unlink(missing_ok=True)
        compiler.write_text(text)
        compiler.chmod(0o755)
        ran = subprocess.run(command, capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
        assert ran.returncode == code and told in ran.stdout + ran.stderr
