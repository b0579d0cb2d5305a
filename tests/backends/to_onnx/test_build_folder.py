"""The folder for devices that run ONNX Runtime: its script runs here, with the real ONNX Runtime."""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import planish
from planish.backends.to_onnx import build_folder as onnx_folder
from planish.compiler import build_folder
from planish.compiler.host import not_this_machine
from planish.compiler.on_device import build_scripts, import_report
from planish.compiler.plugins import registry
from planish.compiler.report import Report
from planish.compiler.targets import find_profile
from tests.compiler.models import ImageAndWords

HERE = [name for name in ("x86-avx2", "graviton3") if find_profile(name).host is not None][
    platform.machine() != "x86_64"
]
"""A target that this machine should be."""
SCRIPTS = [
    *(build_folder.SCRIPTS / name for name in ("check.py", "machine.py", "samples.py")),
    *onnx_folder.SCRIPTS.glob("*.py"),
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 16, 8, 8), torch.randint(50, (2, 5)))
    folder = tmp_path_factory.mktemp("onnx") / "artifact"
    planish.compile(ImageAndWords().eval(), "galaxy-s24-npu", inputs, passes=[], output=folder, backend="onnx")
    manifest = json.loads((folder / "manifest.json").read_text())  # made elsewhere, for this machine
    manifest["profile"] = find_profile(HERE).model_dump(mode="json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def scripts(artifact: Path, tmp_path: Path) -> Path:
    if why_not := not_this_machine(find_profile(HERE)):
        pytest.skip(why_not)
    build_scripts(artifact, HERE, tmp_path / "folder")
    return tmp_path / "folder"


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "build.json").read_text())
    return found


def change(folder: Path, **fields: Any) -> None:
    (folder / "build.json").write_text(json.dumps({**told(folder), **fields}))


def run(folder: Path, *options: str, modules: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(modules or ""), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "check.py", "--seconds", "0.05", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def refusal(folder: Path, *options: str, modules: Path | None = None) -> str:
    ran = run(folder, *options, modules=modules)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_it_verifies_measures_and_its_report_is_imported(scripts: Path, artifact: Path, tmp_path: Path) -> None:
    ran = run(scripts, "--threads", "2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Latency: p50" in ran.stdout
    found = import_report(shutil.copytree(artifact, tmp_path / "artifact"), scripts / "device_report.json")
    assert all(output.snr_db is None or output.snr_db > 100 for output in found.outputs) and found.runs >= 100
    assert found.latency_ms["p50"] <= found.latency_ms["p95"] <= found.latency_ms["p99"]
    assert found.device["threads"] == "2" and "onnxruntime" in found.device
    assert (
        "nodes on CPUExecutionProvider" in found.built_by
        and found.engine_bytes == (scripts / "model.onnx").stat().st_size
    )
    assert Report.load(tmp_path / "artifact/report.json").on_device == [found]
    assert not [*scripts.glob("profile*")]


def test_outputs_that_are_others_are_refused_and_told_in_the_report(scripts: Path) -> None:
    expected = scripts / "expected_output_0.bin"
    expected.write_bytes(bytes(len(expected.read_bytes())))
    assert "expected_output_0.bin is damaged" in refusal(scripts)
    change(scripts, files={"model.onnx": told(scripts)["files"]["model.onnx"]})
    assert "Do not use what was built" in refusal(scripts)
    assert json.loads((scripts / "device_report.json").read_text())["outputs"][0]["snr_db"] < 0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"device": {"machine": "riscv64"}}, "the model was compiled for riscv64"),
        ({"device": {"cpu_flags": ["sse42x"]}}, "This processor lacks sse42x"),
        ({"versions": {"onnxruntime": ">=99"}}, "the model was compiled for >=99"),
        ({"versions": {"onnxruntime-qnn": ">=2"}}, "onnxruntime-qnn >=2 is needed, and none was found"),
    ],
)
def test_another_device_or_version_is_refused_unless_wanted(
    scripts: Path, fields: dict[str, Any], sentence: str
) -> None:
    change(scripts, **fields)
    if "cpu_flags" in str(fields) and not Path("/proc/cpuinfo").exists():
        pytest.skip("processors are told by flags on Linux alone")
    assert sentence in refusal(scripts, "--check") and not (scripts / "device_report.json").exists()
    assert run(scripts, "--other-device").returncode == 0


def test_a_missing_execution_provider_is_told_with_its_package(scripts: Path) -> None:
    profile = find_profile("t4")
    registry().find_backend("onnx").write_build_files(scripts, profile, None)
    assert [each["name"] for each in told(scripts)["providers"]] == [
        "TensorrtExecutionProvider", "CUDAExecutionProvider",
    ]  # fmt: skip
    found = refusal(scripts)
    assert "ONNX Runtime has no TensorrtExecutionProvider here: pip install onnxruntime-gpu" in found
    assert "no NVIDIA GPU" in found or "compiled for NVIDIA T4" in found


def test_a_provider_that_was_left_out_is_no_success(scripts: Path) -> None:
    """ONNX Runtime falls back to the CPU without an error where a provider's libraries are missing."""
    (scripts / "onnxruntime.py").write_text(STAND_IN)
    change(scripts, providers=[{**told(scripts)["providers"][0], "name": "QNNExecutionProvider"}])
    assert "ONNX Runtime left QNNExecutionProvider out" in refusal(scripts, "--other-device")


STAND_IN = """
import importlib, pathlib, sys

sys.path = [path for path in sys.path if path not in ("", str(pathlib.Path(__file__).parent))]
del sys.modules["onnxruntime"]
real = importlib.import_module("onnxruntime")
load = real.InferenceSession
real.get_available_providers = lambda: ["QNNExecutionProvider", "CPUExecutionProvider"]
real.InferenceSession = lambda file, options, providers: load(file, options, ["CPUExecutionProvider"])
"""


def test_without_onnx_runtime_the_packages_are_named(scripts: Path, tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "onnxruntime.py").write_text("raise ImportError('No module named onnxruntime')")
    assert "pip install numpy" in refusal(scripts, modules=modules)


def test_the_scripts_use_nothing_newer_than_python_3_8() -> None:
    newer = ("removeprefix", "removesuffix", "file_digest", "is_relative_to")
    for script in SCRIPTS:
        tree = ast.parse(script.read_text(), feature_version=(3, 8))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & {*newer}, script.name


@pytest.mark.slow
def test_the_scripts_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for script in SCRIPTS:
        shutil.copy(script, tmp_path)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-onnxruntime,tensorrt]\nignore_missing_imports = true\n"
    )
    ran = subprocess.run([sys.executable, "-m", "mypy", "."], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
