"""Times archives against each other."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.compiler.paired_timing import time_in_turns
from planish.compiler.report import Latency


def time_archives(archives: Sequence[Path], leaves: Sequence[Any], threads: int) -> list[Latency]:
    """Latency of each archive on ``leaves``, those of a call; raises LoweringError if one does not load or run."""
    named = {str(index): leaf for index, leaf in enumerate(leaves)}
    tensors = {name: leaf for name, leaf in named.items() if isinstance(leaf, Tensor)}
    others = json.dumps({name: leaf for name, leaf in named.items() if name not in tensors})
    path = f"PYTHONPATH={os.pathsep.join(filter(None, sys.path))}"

    def commands(arrays: Path) -> dict[Path, list[str]]:
        worker = ["env", path, sys.executable, "-m", "planish_example.timing_worker"]
        return {archive: [*worker, *map(str, (archive, arrays, others, threads))] for archive in archives}

    return time_in_turns(commands, tensors, threads, f"PyTorch {torch.__version__}")
