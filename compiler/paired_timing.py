"""Times artifacts against each other: a process each, in turns, so that a busy machine is busy for all.

A backend brings a small worker script, which holds nothing but its runtime. The script loads its file, runs it
once, and prints ``[]``; then it reads one line a request from standard input, the number of calls to make, and
answers with their milliseconds as a JSON list on one line.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from planish.compiler.errors import LoweringError
from planish.compiler.host import cpu_name
from planish.compiler.report import Latency

SECONDS = 0.5
"""Measuring time for each artifact, at least."""
ROUNDS = 12
"""Turns that this time is split into, at most."""

Commands = Callable[[Path], Mapping[Path, Sequence[str]]]
"""From the path of an .npz of the inputs to the command line of the worker of each file."""


def time_in_turns(commands: Commands, inputs: Mapping[str, Tensor], threads: int, runtime: str) -> list[Latency]:
    """Median and 95th percentile of each worker, measured A B A B … in this one run.

    ``inputs``: name -> tensor, one batch. ``runtime``: name and version, for the Report. Raises LoweringError with
    what the worker said if one does not load its file or run it.
    """
    batch = next((int(tensor.shape[0]) for tensor in inputs.values() if tensor.ndim), 1)
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch, ExitStack() as stack:
        arrays = Path(scratch) / "inputs.npz"
        np.savez(arrays, **{name: tensor.numpy(force=True) for name, tensor in inputs.items()})  # type: ignore[arg-type]
        workers = [Worker(file, command, runtime) for file, command in commands(arrays).items()]
        for worker in workers:
            stack.callback(worker.stop)
        for worker in workers:  # all of them start at once
            worker.wait_until_ready()
        times = in_turns(workers)
    how = f"{runtime}, {cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    return [
        Latency(
            median_ms=float(np.median(own)), p95_ms=float(np.percentile(own, 95)), threads=threads, batch=batch,
            runs=len(own), source="measured", how=how,
        )
        for own in times
    ]  # fmt: skip


class Worker:
    """A process that has loaded one file and waits."""

    def __init__(self, file: Path, command: Sequence[str], runtime: str) -> None:
        self.file, self.runtime = file, runtime
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_until_ready(self) -> None:
        self._answer()

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
        told = [text.strip() for text in self.process.stderr.read().splitlines() if text.strip()]
        why = " ".join(told[-4:]) if told else f"exit status {self.process.wait()}"
        raise LoweringError(f"{self.runtime} cannot run {self.file.name}: {why}")

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def in_turns(workers: Sequence[Worker]) -> list[list[float]]:
    """The milliseconds of all calls of each worker."""
    counts = [max(1, round(SECONDS * 1e3 / ROUNDS / min(worker.calls(3)))) for worker in workers]
    times: list[list[float]] = [[] for _ in workers]
    start, rounds = time.perf_counter(), 0
    while rounds < 5 or (rounds < ROUNDS and time.perf_counter() - start < 2 * SECONDS * len(workers)):
        for own, worker, count in zip(times, workers, counts, strict=True):
            own.extend(worker.calls(count))
        rounds += 1
    return times
