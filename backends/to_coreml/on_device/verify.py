#!/usr/bin/env python3
"""Runs model.mlpackage with Apple's runtime: are the outputs the expected ones, how long is a call, what runs where?

Needs macOS, and: pip install coremltools numpy pillow

    python3 verify.py                   on all units; writes device_report.json
    python3 verify.py CPU_ONLY          or CPU_AND_GPU, CPU_AND_NE
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import samples
from machine import Stop

HERE = Path(__file__).resolve().parent
NAMES = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "Neural Engine"}
UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="?", default="ALL", choices=UNITS)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to measure (10)")
    options = parser.parse_args(arguments)

    def work(told: dict[str, Any]) -> None:
        samples.write_report(told, HERE, _measured(told, _coremltools(), options))

    return samples.ended(work, HERE)


def _coremltools() -> Any:
    if not platform.mac_ver()[0]:
        raise Stop("Core ML runs on macOS only: copy this folder to a Mac.")
    try:
        import coremltools
    except ImportError as failure:
        raise Stop(f"{failure}: pip install coremltools numpy pillow") from None
    return coremltools


def _measured(told: dict[str, Any], ct: Any, options: argparse.Namespace) -> dict[str, Any]:
    package, units = HERE / told["package"], ct.ComputeUnit[options.units]
    started = time.perf_counter()
    model = ct.models.MLModel(str(package), compute_units=units)
    loaded = time.perf_counter() - started
    given = {each["name"]: _given(each) for each in told["inputs"]}
    results = model.predict(given)
    outputs = samples.compare(told, HERE, {each["name"]: _numbers(each, results) for each in told["outputs"]})

    def one_call() -> float:
        start = time.perf_counter()
        model.predict(given)
        return (time.perf_counter() - start) * 1e3

    times = samples.measure(one_call, options.seconds)
    operations = _operations(model, units)
    print("Operations by unit:", dict(Counter(each["unit"] for each in operations)))
    return {
        **samples.report(told, _facts(ct, options.units), outputs, times),
        "engine_bytes": sum(each.stat().st_size for each in package.rglob("*") if each.is_file()),
        "built_by": f"Core ML of macOS {platform.mac_ver()[0]}",
        "build_seconds": round(loaded, 1),
        "layers": operations,
    }


def _given(sample: dict[str, Any]) -> Any:
    """What ``predict`` takes: an array, or an image."""
    import numpy as np

    values = np.fromfile(HERE / sample["file"], np.dtype(sample["dtype"])).reshape(sample["shape"])
    if not sample["image"]:
        return values
    from PIL import Image

    pixels = values[0].transpose(1, 2, 0).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _numbers(sample: dict[str, Any], results: dict[str, Any]) -> list[float]:
    """An output row by row; the scores of a classifier in the order of its labels."""
    import numpy as np

    if sample["name"] not in results:
        raise Stop(f"the model has no output {sample['name']}, only {', '.join(sorted(results))}.")
    found = results[sample["name"]]
    values = [found[label] for label in sample["labels"]] if "labels" in sample else found
    return [float(value) for value in np.asarray(values).ravel()]


def _operations(model: Any, units: Any) -> list[dict[str, str]]:
    """Each operation that Core ML plans to run, and on which unit. Constants have none."""
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
    found = []
    for operation in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            device = type(usage.preferred_compute_device).__name__
            unit = NAMES.get(device, device)
            found.append({"name": operation.outputs[0].name, "type": operation.operator_name, "unit": unit})
    return found


def _facts(ct: Any, units: str) -> dict[str, str]:
    chip, model = _system("machdep.cpu.brand_string") or platform.machine(), _system("hw.model")
    return {
        "device": f"{chip} ({model})" if model else chip, "system": f"macOS {platform.mac_ver()[0]}", "units": units,
        "coremltools": str(ct.__version__), "python": platform.python_version(),
    }  # fmt: skip


def _system(name: str) -> str:
    """What the kernel says of this Mac; "" if it does not."""
    try:
        ran = subprocess.run(["sysctl", "-n", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.decode(errors="replace").strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
