"""Times files, and runs each once before anything else does: one that crashes the runtime takes its process along."""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from planish.backends.to_tflite.ends import Ends, to_file
from planish.compiler.paired_timing import Worker, time_in_turns
from planish.compiler.report import Latency

WORKER = Path(__file__).with_name("timing_worker.py")
RUNTIME = "LiteRT"


def run_once(file: Path, ends: Ends, leaves: Sequence[Any]) -> None:
    """Run ``file`` in a process of its own. Raises LoweringError with what the runtime said, or how it died."""
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        worker = Worker(file, _command(file, _saved(Path(scratch) / "inputs.npz", ends, leaves), 1), RUNTIME)
        try:
            worker.wait_until_ready()
        finally:
            worker.stop()


def time_files(files: Sequence[Path], ends: Sequence[Ends], leaves: Sequence[Any], threads: int = 1) -> list[Latency]:
    """Latency of each file on ``leaves``, the Program's inputs; raises LoweringError if one does not run."""

    def commands(arrays: Path) -> dict[Path, list[str]]:
        own = [arrays.with_name(f"{place}.npz") for place in range(len(files))]  # INT8 ends take other arrays
        saved = [_saved(path, each, leaves) for path, each in zip(own, ends, strict=True)]
        return {file: _command(file, path, threads) for file, path in zip(files, saved, strict=True)}

    version = importlib.metadata.version("ai-edge-litert")
    named = {f"input_{place}": leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    return time_in_turns(commands, named, threads, f"{RUNTIME} {version}, XNNPACK")


def _saved(path: Path, ends: Ends, leaves: Sequence[Any]) -> Path:
    arrays = to_file(leaves, ends.inputs)
    np.savez(path, **{f"input_{place:03}": array for place, array in enumerate(arrays)})  # type: ignore[arg-type]
    return path


def _command(file: Path, arrays: Path, threads: int) -> list[str]:
    # -P: the folder of the script is not searched for modules
    return [sys.executable, "-P", str(WORKER), str(file), str(arrays), str(threads)]
