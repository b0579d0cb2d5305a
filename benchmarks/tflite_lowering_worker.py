"""One measured lowering to TFLite: ``python -m benchmarks.tflite_lowering_worker MODEL FOLDER``.

Prints, as its last line, a JSON object with seconds, peak_mib and before_mib: the process with the model traced.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.compile_cost_worker import memory_mib
from benchmarks.models import WORKLOADS, seeded_model
from planish.backends.to_tflite.converter import convert
from planish.backends.to_tflite.files import save
from planish.compiler.inputs import Inputs
from planish.compiler.shapes import ensure_shapes
from planish.compiler.trace import trace_with_notes


def main(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    workload = WORKLOADS[name]
    program = trace_with_notes(seeded_model(workload), Inputs(workload.draw(1, 1)), dynamic_batch=False).program
    ensure_shapes(program)
    importlib.import_module("planish.backends.to_tflite.gate")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark of memory starts anew
    before = memory_mib("VmRSS")
    start = time.perf_counter()
    save(convert(program).graph, folder / "model.tflite")
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_mib": memory_mib("VmHWM"), "before_mib": before}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
