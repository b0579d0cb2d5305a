"""Times files against each other: a process each, in turns, so that a busy machine is busy for all."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import openvino
from torch import Tensor

from planish.compiler.errors import LoweringError
from planish.compiler.host import cpu_name
from planish.compiler.report import Latency
from planish_openvino.runtime import CONFIG

WORKER = Path(__file__).with_name("timing_worker.py")
ROUNDS = 12
MS_A_ROUND = 50.0
"""Measuring time for each file in each round."""


def time_files(files: Sequence[Path], tensors: Sequence[Tensor], threads: int) -> list[Latency]:
    """Median and 95th percentile of each file over rounds A B, B A, A B … in this one run.

    ``tensors`` are one batch, in the order of the inputs. Raises LoweringError if a file does not load or run.
    """
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch, ExitStack() as stack:
        inputs = Path(scratch) / "inputs.npz"
        np.savez(inputs, **{str(index): tensor.numpy(force=True) for index, tensor in enumerate(tensors)})  # type: ignore[arg-type]
        workers = [stack.enter_context(_Worker(file, inputs, threads)) for file in files]
        times = _in_turns(workers)
    version = openvino.__version__.split("-")[0]
    how = f"OpenVINO {version}, {cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    batch = next((int(tensor.shape[0]) for tensor in tensors if tensor.ndim), 1)
    return [
        Latency(
            median_ms=float(np.median(own)), p95_ms=float(np.percentile(own, 95)), threads=threads, batch=batch,
            runs=len(own), source="measured", how=how,
        )
        for own in times
    ]  # fmt: skip


def _in_turns(workers: Sequence[_Worker]) -> list[list[float]]:
    counts = [max(1, round(MS_A_ROUND / min(worker.calls(5)))) for worker in workers]
    times: list[list[float]] = [[] for _ in workers]
    turns = [*zip(times, workers, counts, strict=True)]
    for _ in range(ROUNDS):
        for own, worker, count in turns:
            own += worker.calls(count + 1)[1:]  # the first call finds the caches full of another file
        turns.reverse()
    return times


class _Worker:
    """A process that has loaded one file and waits; it ends with the ``with`` block."""

    def __init__(self, file: Path, inputs: Path, threads: int) -> None:
        self.file = file
        config = json.dumps({**CONFIG, "INFERENCE_NUM_THREADS": threads})
        command = [sys.executable, "-P", str(WORKER), str(file), str(inputs), config]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> _Worker:
        try:
            self._answer()
        except LoweringError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def calls(self, count: int) -> list[float]:
        """Milliseconds of ``count`` calls."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it ended: the error below says with what
            print(count, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> list[float]:
        assert self.process.stdout is not None and self.process.stderr is not None
        if line := self.process.stdout.readline():
            return [float(ms) for ms in json.loads(line)]
        told = [line for line in self.process.stderr.read().splitlines() if line.strip()]
        why = told[-1].strip() if told else f"exit status {self.process.wait()}"
        raise LoweringError(f"OpenVINO cannot run {self.file.name}: {why}", component="openvino")
