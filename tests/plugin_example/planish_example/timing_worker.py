"""Calls one archive again and again: each line on standard input says for how many seconds.

Run as ``python -m planish_example.timing_worker ARCHIVE TENSORS OTHERS THREADS``;
each answer is one line: a list of milliseconds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter

import safetensors.torch
import torch

from planish.compiler.program import Program
from planish_example.torch_archive import ProgramRunner


def main(archive: str, tensors: str, others: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    runner = ProgramRunner(Program.load(archive))
    named = safetensors.torch.load_file(tensors) | json.loads(Path(others).read_text())
    leaves = [named[str(index)] for index in range(len(named))]
    for _ in range(3):  # warm up
        runner(leaves)
    for line in sys.stdin:
        times: list[float] = []
        end = perf_counter() + float(line)
        while not times or perf_counter() < end:
            start = perf_counter()
            runner(leaves)
            times.append((perf_counter() - start) * 1e3)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
