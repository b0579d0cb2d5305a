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


def time_files(files: Sequence[Path], tensors: Sequence[Tensor], threads: int = 1) -> list[Latency]:
    """Latency of each file on ``tensors``, one batch, in the order of the inputs.

    Raises LoweringError if a file does not load or run.
    """

    def commands(arrays: Path) -> dict[Path, list[str]]:
        # -P: the folder of the script is not searched for modules
        return {file: [sys.executable, "-P", str(WORKER), str(file), str(arrays), str(threads)] for file in files}

    inputs = {str(index): tensor for index, tensor in enumerate(tensors)}
    return time_in_turns(commands, inputs, threads, f"ONNX Runtime {ort.__version__}")
