"""Runs files in processes of their own: one that crashes the runtime takes its process along. Also times them."""

from __future__ import annotations

import functools
import subprocess
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
_RUNTIMES = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
_LOOK = """
import importlib.metadata, importlib.util
for name, module in {runtimes}.items():
    if importlib.util.find_spec(module):
        print(name, importlib.metadata.version(name))
"""


@functools.cache
def runtime_of(python: str = sys.executable) -> str | None:
    """Name and version of the runtime that the interpreter ``python`` has; None if it has none, or is none."""
    try:
        told = subprocess.run(
            [python, "-P", "-c", _LOOK.format(runtimes=_RUNTIMES)], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return next(iter(told.stdout.splitlines()), None)


def run_once(file: Path, ends: Ends, leaves: Sequence[Any], python: str = sys.executable) -> list[np.ndarray]:
    """What ``file`` gives in a process of its own. Raises LoweringError with what the runtime said, or how it died."""
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        given, outputs = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
        command = [*_command(file, _saved(given, ends, leaves), 1, python), str(outputs)]
        worker = Worker(file, command, runtime_of(python) or python)
        try:
            worker.wait_until_ready()
        finally:
            worker.stop()
        with np.load(outputs) as arrays:
            return [*arrays.values()]


def time_files(
    files: Sequence[Path],
    ends: Sequence[Ends],
    leaves: Sequence[Any],
    threads: int = 1,
    python: str = sys.executable,
) -> list[Latency]:
    """Latency of each file on ``leaves``, the Program's inputs; raises LoweringError if one does not run."""

    def commands(arrays: Path) -> dict[Path, list[str]]:
        own = [arrays.with_name(f"{place}.npz") for place in range(len(files))]  # INT8 ends take other arrays
        saved = [_saved(path, each, leaves) for path, each in zip(own, ends, strict=True)]
        return {file: _command(file, path, threads, python) for file, path in zip(files, saved, strict=True)}

    named = {f"input_{place}": leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    return time_in_turns(commands, named, threads, f"{runtime_of(python)}, XNNPACK")


def _saved(path: Path, ends: Ends, leaves: Sequence[Any]) -> Path:
    arrays = to_file(leaves, ends.inputs)
    np.savez(path, **{f"input_{place:03}": array for place, array in enumerate(arrays)})  # type: ignore[arg-type]
    return path


def _command(file: Path, arrays: Path, threads: int, python: str) -> list[str]:
    # -P: the folder of the script is not searched for modules
    return [python, "-P", str(WORKER), str(file), str(arrays), str(threads)]
