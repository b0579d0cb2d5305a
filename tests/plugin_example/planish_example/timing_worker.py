"""Runs one archive in a process of its own and reports the time of each call.

Run as ``python -m planish_example.timing_worker ARCHIVE ARRAYS OTHERS THREADS``; OTHERS are the leaves that are no
tensors, as JSON. Says ``[]`` when it is ready; then each line on standard input asks for so many calls, and each
answer is one line: a list of milliseconds.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter

import numpy as np
import torch

from planish.compiler.program import Program
from planish_example.torch_archive import ProgramRunner


def main(archive: str, arrays: str, others: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    runner = ProgramRunner(Program.load(archive))
    named = json.loads(others)
    with np.load(arrays) as held:
        named |= {name: torch.from_numpy(held[name]) for name in held.files}
    leaves = [named[str(index)] for index in range(len(named))]
    runner(leaves)
    print("[]", flush=True)
    for line in sys.stdin:
        times: list[float] = []
        for _ in range(int(line)):
            start = perf_counter()
            runner(leaves)
            times.append((perf_counter() - start) * 1e3)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
