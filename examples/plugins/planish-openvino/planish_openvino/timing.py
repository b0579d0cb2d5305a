"""Times files against each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import openvino
from torch import Tensor

from planish.compiler.paired_timing import time_in_turns
from planish.compiler.report import Latency
from planish_openvino.runtime import CONFIG

WORKER = Path(__file__).with_name("timing_worker.py")


def time_files(files: Sequence[Path], tensors: Sequence[Tensor], threads: int) -> list[Latency]:
    """Latency of each file on ``tensors``, one batch, in the order of the inputs.

    Raises LoweringError if a file does not load or run.
    """
    config = json.dumps({**CONFIG, "INFERENCE_NUM_THREADS": threads})

    def commands(arrays: Path) -> dict[Path, list[str]]:
        return {file: [sys.executable, "-P", str(WORKER), str(file), str(arrays), config] for file in files}

    inputs = {str(index): tensor for index, tensor in enumerate(tensors)}
    return time_in_turns(commands, inputs, threads, f"OpenVINO {openvino.__version__.split('-')[0]}")
