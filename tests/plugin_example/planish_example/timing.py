"""Times archives against each other: one process each, in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from planish.compiler.errors import PluginError
from planish.compiler.host import cpu_name
from planish.compiler.inputs import Inputs
from planish.compiler.report import Latency

ROUNDS = 10
SECONDS_A_ROUND = 0.05


def time_archives(archives: Sequence[Path], leaves: Sequence[Any], threads: int) -> list[Latency]:
    """Latency of each archive, over rounds A B C A B C …: drift of the machine meets all alike."""
    times: list[list[float]] = [[] for _ in archives]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        tensors, others = Path(folder, "leaves.safetensors"), Path(folder, "leaves.json")
        _save_leaves(leaves, tensors, others)
        workers = [stack.enter_context(Worker(archive, tensors, others, threads)) for archive in archives]
        for _ in range(ROUNDS):
            for worker, so_far in zip(workers, times, strict=True):
                so_far += worker.time(SECONDS_A_ROUND)
    how = f"PyTorch {torch.__version__} on {cpu_name()}, in a process of its own"
    batch = Inputs(tuple(leaves)).batch_size
    return [_latency(torch.tensor(milliseconds), batch, threads, how) for milliseconds in times]


def _latency(milliseconds: Tensor, batch: int, threads: int, how: str) -> Latency:
    median, p95 = (milliseconds.quantile(share).item() for share in (0.5, 0.95))
    return Latency(
        median_ms=median,
        p95_ms=p95,
        threads=threads,
        batch=batch,
        runs=len(milliseconds),
        source="measured",
        how=how,
    )


class Worker:
    """The process of one archive; it ends with the ``with`` block."""

    def __init__(self, archive: Path, tensors: Path, others: Path, threads: int) -> None:
        self.archive = archive
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "planish_example.timing_worker",
                *map(str, (archive, tensors, others, threads)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def time(self, seconds: float) -> list[float]:
        """Milliseconds of each call that fits into ``seconds``, at least one."""
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):  # it ended: the last line says with what
            print(seconds, file=self.process.stdin, flush=True)
        if answer := self.process.stdout.readline():
            return list(json.loads(answer))
        code = self.process.wait()
        raise PluginError(f"See above why the process that times {self.archive} ended with exit code {code}.")


def _save_leaves(leaves: Sequence[Any], tensors: Path, others: Path) -> None:
    named = {str(index): leaf for index, leaf in enumerate(leaves)}
    held = {name: leaf for name, leaf in named.items() if isinstance(leaf, Tensor)}
    others.write_text(json.dumps({name: leaf for name, leaf in named.items() if name not in held}))
    apart = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in held.items()}
    safetensors.torch.save_file(apart, tensors)
