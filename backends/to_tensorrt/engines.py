"""Engines on this machine, where it is the device: built by the scripts that any device gets, run and timed.

TensorRT and CUDA are loaded in processes of their own alone. What the builder has timed is kept in the user's cache
folder, by GPU and version (``engine.cache_name``).
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import platformdirs
import torch
from torch import Tensor

from planish.backends.to_onnx.sample_files import inputs_for
from planish.backends.to_tensorrt import build_folder
from planish.backends.to_tensorrt.this_machine import facts, runtime
from planish.compiler.artifact import sha256_of
from planish.compiler.contracts import Runner
from planish.compiler.errors import LoweringError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.paired_timing import Worker, time_in_turns
from planish.compiler.report import DeviceReport, Latency

SECONDS = 1.0
"""How long an engine is measured by itself, for its device report. Engines are compared in turns: ``time_engines``."""
_WORKER = Path(__file__).with_name("engine_worker.py")


# ---------------------------------------------------------------------- building


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Where engines lie as long as this process lives."""
    return tempfile.TemporaryDirectory(prefix="planish-engines-")


def engine_for(folder: Path, profile: HardwareProfile, tensors: Sequence[Tensor]) -> Path:
    """A build folder with the engine of ``folder/model.onnx`` for inputs of these shapes, and its device report.

    The same model is built once for the same shapes. Raises LoweringError with what ``build.py`` stopped for: what
    TensorRT rejects, and outputs that are not the expected ones.
    """
    place = Path(_scratch().name) / _identity(folder, profile, tensors)
    if not place.exists():
        beside = place.with_name(f"{place.name}.part")
        shutil.rmtree(beside, ignore_errors=True)  # of a build that failed
        beside.mkdir()
        for file in folder.glob(f"{build_folder.MODEL}*"):
            shutil.copy(file, beside)
        build_folder.write_for(beside, profile, tensors)
        _build(beside)
        beside.rename(place)
    return place


def _identity(folder: Path, profile: HardwareProfile, tensors: Sequence[Tensor]) -> str:
    shapes = [[*tensor.shape] for tensor in tensors]
    digest = hashlib.sha256(json.dumps([profile.model_dump(mode="json"), shapes]).encode())
    for file in sorted(folder.glob(f"{build_folder.MODEL}*")):
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()


def _build(folder: Path) -> None:
    caches = Path(platformdirs.user_cache_dir("planish")) / "tensorrt"
    caches.mkdir(parents=True, exist_ok=True)
    ran = subprocess.run(
        [sys.executable, "build.py", "--seconds", str(SECONDS), "--caches", str(caches)],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        said = [line for line in ran.stderr.splitlines() if line.strip()]
        raise LoweringError(said[-1].removeprefix("Stopped: ") if said else ran.stdout[-200:], component="tensorrt")


def report_of(folder: Path, profile: HardwareProfile, tensors: Sequence[Tensor]) -> DeviceReport:
    """What ``build.py`` found of the engine for one row: layers as its inspector lists them, outputs, latency."""
    place = engine_for(folder, profile, inputs_for(ir.load(folder / build_folder.MODEL), tensors))
    return DeviceReport.model_validate_json((place / "device_report.json").read_text())


# ---------------------------------------------------------------------- timing and running


def time_engines(folders: Sequence[Path], profile: HardwareProfile, tensors: Sequence[Tensor]) -> list[Latency]:
    """Latency of the engine of each folder, in turns, by CUDA events: without the copies of inputs and outputs.

    Raises LoweringError if an engine cannot be built or run.
    """
    places = [engine_for(folder, profile, tensors) for folder in folders]  # one by one: building measures kernels

    def commands(arrays: Path) -> dict[Path, list[str]]:
        return {folder: _command("time", place, arrays) for folder, place in zip(folders, places, strict=True)}

    inputs = {str(index): tensor for index, tensor in enumerate(tensors)}
    found = time_in_turns(commands, inputs, 1, runtime())
    how = f"{runtime()}, {facts()['device']}, by CUDA events"
    return [latency.model_copy(update={"how": how, "threads": None}) for latency in found]


def _command(task: str, place: Path, arrays: Path) -> list[str]:
    return [sys.executable, "-P", str(_WORKER), task, str(place), str(arrays)]


class EngineRunner(Runner):
    """The engine of ``folder/model.onnx`` in a process of its own, built when it is called.

    One that was built for fewer rows, or shorter ones, is built anew.
    """

    def __init__(self, folder: Path, profile: HardwareProfile) -> None:
        self._folder, self._profile = folder, profile
        self._files = tempfile.TemporaryDirectory(prefix="planish-")
        self._arrays = Path(self._files.name) / "inputs.npz"
        self._worker: Worker | None = None
        self._told: dict[str, Any] = {}

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        tensors = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]
        np.savez(self._arrays, **{str(at): tensor.numpy(force=True) for at, tensor in enumerate(tensors)})  # type: ignore[arg-type]
        worker = self._taking(tensors)
        worker.calls(1)
        with np.load(self._arrays.with_name("outputs.npz")) as outputs:
            return [torch.from_numpy(outputs[str(at)]) for at in range(len(outputs.files))]

    def _taking(self, tensors: Sequence[Tensor]) -> Worker:
        if self._worker is None or not _takes(self._told, tensors):
            self.close()
            place = engine_for(self._folder, self._profile, tensors)
            self._told = json.loads((place / "build.json").read_text())
            self._worker = Worker(self._folder, _command("run", place, self._arrays), runtime())
            self._worker.wait_until_ready()
        return self._worker

    def close(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def __del__(self) -> None:
        self.close()


def _takes(told: dict[str, Any], tensors: Sequence[Tensor]) -> bool:
    return all(
        least <= size <= most
        for each, tensor in zip(told["inputs"], tensors, strict=True)
        for least, size, most in zip(each["least"], tensor.shape, each["most"], strict=True)
    )
