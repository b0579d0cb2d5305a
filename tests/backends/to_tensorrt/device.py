"""A device to run the scripts on: a folder for /, stand-ins for TensorRT, CUDA, trtexec and the tools of a Jetson."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from planish.backends.to_tensorrt.backend import TensorRtBackend
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.targets import find_profile
from planish.compiler.trace import trace
from planish.passes.quantize_int8 import QuantizeInt8
from tests.compiler.models import ImageAndWords

FAKES = Path(__file__).with_name("fakes")


@dataclass
class Device:
    """An NVIDIA Jetson AGX Orin with JetPack 6.1, until a test changes something."""

    folder: Path
    """Where the scripts lie."""
    place: Path
    model: str = "NVIDIA Jetson AGX Orin Developer Kit"
    release: str = "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64"
    memory_kb: int = 64_349_696
    free_kb: int = 60_000_000
    tools: set[str] = field(default_factory=lambda: {"trtexec", "nvpmodel", "dpkg-query", "nvidia-smi"})
    environment: dict[str, str] = field(default_factory=lambda: {"FAKE_TENSORRT": "10.3.0", "FAKE_JETPACK": "6.1+b123"})
    has_tensorrt: bool = True
    has_cuda: bool = True

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        root, tools = self.place / "root", self.place / "tools"
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(tools, ignore_errors=True)
        (root / "proc").mkdir(parents=True)
        if self.model:
            (root / "proc/device-tree").mkdir()
            (root / "proc/device-tree/model").write_text(self.model + "\0")
        (root / "proc/meminfo").write_text(f"MemTotal: {self.memory_kb} kB\nMemAvailable:  {self.free_kb} kB\n")
        if self.release:
            (root / "etc").mkdir()
            (root / "etc/nv_tegra_release").write_text(self.release)
        self._put_tools(tools)
        environment = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "FAKE_PYTHON": sys.executable,
            "FAKE_ROOT": str(root),
            "LD_LIBRARY_PATH": str(self.place) if self.has_cuda else "",
            "PYTHONPATH": str(FAKES / "modules") if self.has_tensorrt else "",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            **self.environment,
        }
        return subprocess.run(
            [str(tools / command[0]) if (tools / command[0]).exists() else command[0], *command[1:]],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def build(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("python3", "build.py", "--seconds", "0.1", *options)

    def _put_tools(self, tools: Path) -> None:
        tools.mkdir()
        for name in (*self.tools, "python3"):
            if name == "trtexec":
                text = (FAKES / "bin/trtexec.py").read_text().replace("/usr/bin/env python3", sys.executable)
                (tools / name).write_text(text)
            else:
                shutil.copy(FAKES / "bin" / name, tools / name)
            (tools / name).chmod(0o755)


def compile_cuda(place: Path) -> None:
    """The stand-in for libcudart in ``place``."""
    source, library = FAKES / "cudart.c", place / "libcudart.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True, env={**os.environ})


# ---------------------------------------------------------------------- what lies on it


def profile(target: str = "jetson-orin", **versions: str) -> HardwareProfile:
    found = find_profile(target)
    runtime = found.runtime.model_copy(update={"versions": versions or found.runtime.versions})
    return found.model_copy(update={"runtime": runtime})


def build_files(folder: Path, target: HardwareProfile) -> Path:
    """An artifact's model.onnx in INT8, with the scripts beside it."""
    torch.manual_seed(0)
    inputs = (torch.randn(2, 16, 8, 8), torch.randint(50, (2, 5)))
    program, backend = trace(ImageAndWords().eval(), Inputs(inputs)), TensorRtBackend()
    context = Context(target, backend.scheme(target), Calibration([Inputs(inputs)], "given"))
    folder.mkdir(parents=True)
    backend.lower(QuantizeInt8(calibrator="minmax").run(program, context), target, folder)
    backend.write_build_files(folder, target, inputs)
    return folder


def device(place: Path, cuda: Path, files: Path) -> Device:
    shutil.copytree(files, place / "folder")
    shutil.copy(cuda, place)
    return Device(place / "folder", place)


def report(of: Device) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((of.folder / "device_report.json").read_text())
    return told


def refusal(ran: subprocess.CompletedProcess[str]) -> str:
    """What it stopped for: one sentence, no traceback, exit code 1."""
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stdout + ran.stderr
