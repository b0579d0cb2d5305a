"""One measured compilation: ``python -m benchmarks.compile_cost_worker TASK MODEL INPUTS FOLDER``.

``prepare`` writes weights.pt, float.onnx and the calibration inputs to FOLDER; every other task reads them
and prints, as its last line, a JSON object with seconds, peak_mib and imported_mib. Linux only: the peak is
the kernel's high-water mark, set back right before the measurement.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from benchmarks import ours
from benchmarks.models import WORKLOADS, Inputs, seeded_model
from benchmarks.peers import export_float, peer_file

BATCH = 8
EXPORT = ("onnx", "onnxscript", "torch.export._trace", "torch.onnx._internal.exporter._core")
QUANTIZE = {
    "ort-minmax": ("onnx", "onnxruntime.quantization.shape_inference"),
    "nncf-onnx": ("onnx", "onnxruntime", "nncf.onnx"),
}
# A tool's imports are not its work: all that it would load on the way is loaded before.
PLANISH = (
    "onnx",
    "onnxruntime",
    "torch.export._trace",
    "planish.compiler.driver",
    "planish.passes.quantize_int8",
    "planish.backends.to_onnx.audit",
    "planish.backends.to_onnx.exporter",
    "planish.backends.to_onnx.files",
    "planish.backends.to_onnx.timing",
)


def memory_mib(field: str) -> float:
    """``VmRSS`` or ``VmHWM`` (its peak) of this process. ru_maxrss would include the parent's peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def prepare(name: str, images: int, folder: Path) -> None:
    workload = WORKLOADS[name]
    model = seeded_model(workload)
    torch.save(model.state_dict(), folder / "weights.pt")
    export_float(model, workload.draw(2, 1), workload.input_names, folder / "float.onnx")
    arrays = [tensor.numpy() for tensor in workload.draw(images, 2)]
    np.savez(folder / "calibration.npz", *arrays)


def stored_batches(folder: Path) -> list[Inputs]:
    with np.load(folder / "calibration.npz") as stored:
        tensors = [torch.from_numpy(stored[name]) for name in stored.files]
    return list(zip(*(tensor.split(BATCH) for tensor in tensors), strict=True))


def stored_model(name: str, folder: Path) -> nn.Module:
    model = WORKLOADS[name].build()
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return model.eval()


def work(task: str, name: str, folder: Path, scratch: Path) -> Callable[[], object]:
    """What is to be measured, with its model and inputs loaded already."""
    calibration = stored_batches(folder)
    float_onnx = folder / "float.onnx"
    if task in QUANTIZE:
        return lambda: peer_file(task, float_onnx, nn.Identity(), calibration, scratch)
    model = stored_model(name, folder)
    example = tuple(tensor[:2] for tensor in calibration[0])
    if task == "planish":
        return lambda: ours.planish_int8(model, example, calibration, scratch / "planish")

    def export() -> Path:
        return export_float(model, example, WORKLOADS[name].input_names, scratch / "float.onnx")

    if task == "export":
        return export
    tool = task.removeprefix("export + ")
    return lambda: peer_file(tool, export(), model, calibration, scratch)


def imports(task: str) -> tuple[str, ...]:
    if task == "planish":
        return PLANISH
    exported = EXPORT if task.startswith("export") else ()
    return (*exported, *QUANTIZE.get(task.removeprefix("export + "), ()))


def measure(task: str, name: str, folder: Path) -> dict[str, float]:
    for module in imports(task):
        importlib.import_module(module)
    if task == "planish":
        ours.prepare()
    imported = memory_mib("VmRSS")
    with TemporaryDirectory() as scratch:
        run = work(task, name, folder, Path(scratch))
        Path("/proc/self/clear_refs").write_text("5")  # man proc_pid_clear_refs: resets the peak
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": memory_mib("VmHWM"), "imported_mib": imported}


if __name__ == "__main__":
    task, name, images, folder = sys.argv[1:]
    if task == "prepare":
        prepare(name, int(images), Path(folder))
        print(json.dumps("prepared"))
    else:
        print(json.dumps(measure(task, name, Path(folder))))
