"""Run and time model files side by side, each in a process of its own, one thread each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import Inputs

CHUNK_MS = 60.0


@dataclass(frozen=True)
class Contestant:
    """A model file and the runtime that executes it; names are unique within a comparison."""

    name: str
    runtime: Literal["onnxruntime", "openvino"]
    path: Path

    @property
    def megabytes(self) -> float:
        """Size on disk with the weights stored beside the model (.bin, .data), in 10^6 bytes."""
        return sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.stem}.*")) / 1e6


@dataclass(frozen=True)
class Timing:
    """Latencies in ms; ``ratio`` is the median over rounds of this median by the baseline's of that round."""

    median_ms: float
    p95_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    calls: int


class Worker:
    """A contestant's process; ends with the ``with`` block."""

    def __init__(self, contestant: Contestant, example: Inputs, folder: Path):
        self.contestant, self.folder = contestant, folder
        save(example, folder / "example.npz")
        script = str(Path(__file__).with_name("timing_worker.py"))
        arguments = [contestant.runtime, str(contestant.path), str(folder / "example.npz")]
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def ask(self, *command: object) -> Any:
        assert self.process.stdin
        self.process.stdin.write("\t".join(map(str, command)) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.contestant.name}: its process ended with {self.process.wait()}, see above")
        return json.loads(line)

    def time(self, count: int) -> list[float]:
        return self.ask("time", count)

    def run(self, inputs: Inputs) -> NDArray[Any]:
        save(inputs, self.folder / "inputs.npz")
        self.ask("run", self.folder / "inputs.npz", self.folder / "outputs.npz")
        with np.load(self.folder / "outputs.npz") as outputs:
            return outputs["0"]


def save(inputs: Inputs, path: Path) -> None:
    arrays: dict[str, Any] = {str(index): tensor.numpy() for index, tensor in enumerate(inputs)}
    np.savez(path, **arrays)


def outputs_of(contestant: Contestant, inputs: Inputs, batch: int) -> NDArray[Any]:
    """The first output for every row of ``inputs``, computed in batches of ``batch``."""
    example = tuple(tensor[:batch] for tensor in inputs)
    with TemporaryDirectory() as folder, Worker(contestant, example, Path(folder)) as worker:
        return worker.run(inputs)


def paired_timings(contestants: Sequence[Contestant], example: Inputs, baseline: str, rounds: int) -> dict[str, Timing]:
    """Time all contestants in turn (A B C A B C ...), so that drift of the machine meets all alike.

    A chunk is some CHUNK_MS of calls; the first call of each chunk finds cold caches and is dropped.
    """
    samples: dict[str, list[list[float]]] = {contestant.name: [] for contestant in contestants}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for contestant in contestants:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            workers[contestant.name] = stack.enter_context(Worker(contestant, example, folder))
        chunks = {name: calls_per_chunk(worker) for name, worker in workers.items()}
        for _ in range(rounds):
            for name, worker in workers.items():
                samples[name].append(worker.time(chunks[name] + 1)[1:])
    return {name: summary(chunks, samples[baseline]) for name, chunks in samples.items()}


def calls_per_chunk(worker: Worker) -> int:
    worker.time(5)  # warm up
    return max(5, round(CHUNK_MS / float(np.median(worker.time(5)))))


def summary(chunks: list[list[float]], baseline: list[list[float]]) -> Timing:
    calls = np.concatenate(chunks)
    ratios = [np.median(ours) / np.median(theirs) for ours, theirs in zip(chunks, baseline, strict=True)]
    low, middle, high = (float(value) for value in np.percentile(ratios, (25, 50, 75)))
    median, p95 = (float(value) for value in np.percentile(calls, (50, 95)))
    return Timing(median, p95, middle, (low, high), len(calls))


def signal_to_noise_db(reference: NDArray[Any], outputs: NDArray[Any]) -> float:
    """10 log10 of the reference's energy by the energy of the difference."""
    reference = reference.astype(np.float64)
    noise = float(np.square(outputs - reference).sum())
    return float("inf") if noise == 0 else 10 * float(np.log10(np.square(reference).sum() / noise))
