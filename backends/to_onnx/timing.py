"""Times ONNX files against each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
from torch import Tensor

from planish.compiler.paired_timing import time_in_turns
from planish.compiler.report import Latency

WORKER = Path(__file__).with_name("timing_worker.py")


def time_files(files: Sequence[Path], inputs: dict[str, Tensor], threads: int = 1) -> list[Latency]:
    """Latency of each file on ``inputs`` (name -> tensor); raises LoweringError if one does not load or run."""

    def commands(arrays: Path) -> dict[Path, list[str]]:
        # -P: the folder of the script is not searched for modules
        return {file: [sys.executable, "-P", str(WORKER), str(file), str(arrays), str(threads)] for file in files}

    return time_in_turns(commands, inputs, threads, f"ONNX Runtime {ort.__version__}")
