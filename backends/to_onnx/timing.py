"""Times ONNX files against each other: a process each, in turns, so that a busy machine is busy for all."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnxruntime as ort
from torch import Tensor

from planish.compiler.errors import LoweringError
from planish.compiler.host import cpu_name
from planish.compiler.report import Latency

WORKER = Path(__file__).with_name("timing_worker.py")
SECONDS = 0.5
"""Measuring time for each file, at least."""
ROUNDS = 12
"""Turns that this time is split into, at least."""


class _Worker:
    """A process that has loaded one file and waits."""

    def __init__(self, model: Path, inputs: Path, threads: int) -> None:
        command = [sys.executable, "-P", str(WORKER), str(model), str(inputs), str(threads)]
        self.model = model
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def ready(self) -> None:
        self._answer()

    def calls(self, count: int) -> list[float]:
        """Milliseconds of ``count`` calls."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> list[float]:
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            told = self.process.stderr.read().strip().splitlines()
            why = " ".join(told[-4:]) if told else f"exit status {self.process.wait()}"
            raise LoweringError(f"ONNX Runtime cannot run {self.model.name}: {why}", component="onnx")
        return [float(ms) for ms in json.loads(line)]

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def time_files(models: Sequence[Path], inputs: dict[str, Tensor], threads: int = 1) -> list[Latency]:
    """Median and 95th percentile of each file, measured in turns (A B A B …) in this one run.

    ``inputs``: name -> tensor, one batch. Raises LoweringError if a file does not load or run.
    """
    batch = next((int(tensor.shape[0]) for tensor in inputs.values() if tensor.ndim), 1)
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch, ExitStack() as stack:
        arrays = Path(scratch) / "inputs.npz"
        np.savez(arrays, **{name: tensor.numpy(force=True) for name, tensor in inputs.items()})  # type: ignore[arg-type]
        workers = [_Worker(model, arrays, threads) for model in models]
        for worker in workers:
            stack.callback(worker.stop)
        for worker in workers:
            worker.ready()
        times = _in_turns(workers)
    how = f"ONNX Runtime {ort.__version__}, {cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    return [
        Latency(
            median_ms=float(np.median(own)), p95_ms=float(np.percentile(own, 95)), threads=threads, batch=batch,
            runs=len(own), source="measured", how=how,
        )
        for own in times
    ]  # fmt: skip


def _in_turns(workers: Sequence[_Worker]) -> list[list[float]]:
    counts = [max(1, round(SECONDS * 1e3 / ROUNDS / min(worker.calls(3)))) for worker in workers]
    times: list[list[float]] = [[] for _ in workers]
    start, rounds = time.perf_counter(), 0
    while rounds < 5 or (rounds < ROUNDS and time.perf_counter() - start < 2 * SECONDS * len(workers)):
        for own, worker, count in zip(times, workers, counts, strict=True):
            own.extend(worker.calls(count))
        rounds += 1
    return times
