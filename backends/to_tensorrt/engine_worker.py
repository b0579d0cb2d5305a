"""Holds one engine in a process of its own, and times or runs it: ``engine_worker.py time|run FOLDER INPUTS.npz``.

A script, not a module of planish: what runs engines lies in FOLDER, as on any device. It reads one line a request
from standard input, the number of calls to make, and answers with their milliseconds as JSON. ``run`` makes one call
for each line, of the inputs that lie there then, and leaves what comes out in ``outputs.npz`` beside them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main(task: str, folder: Path, arrays: Path) -> None:
    sys.path.insert(0, str(folder))
    engine, machine = importlib.import_module("engine"), importlib.import_module("machine")
    told = json.loads((folder / "build.json").read_text())
    answers = sys.stdout
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):  # TensorRT's warnings
        try:
            loaded = engine.Engine(told, folder / engine.ENGINE)
            call = timed(loaded, told, arrays) if task == "time" else run(loaded, told, arrays)
            print("[]", file=answers, flush=True)
            for line in sys.stdin:
                print(json.dumps([call() for _ in range(int(line))]), file=answers, flush=True)
        except machine.Stop as problem:
            sys.exit(str(problem))


def timed(loaded: Any, told: dict[str, Any], arrays: Path) -> Callable[[], float]:
    inputs, _ = read(told, arrays)
    call: Callable[[], float] = loaded.timed(inputs)
    call()
    return call


def run(loaded: Any, told: dict[str, Any], arrays: Path) -> Callable[[], float]:
    def call() -> float:
        found = loaded.outputs(*read(told, arrays))
        results: dict[str, np.ndarray] = {}
        for at, each in enumerate(told["outputs"]):
            data, dtype, shape = found[each["name"]]
            results[str(at)] = np.frombuffer(data, dtype).reshape(shape).astype(each["dtype"])
        np.savez(arrays.with_name("outputs.npz"), **results)  # type: ignore[arg-type]
        return 0.0

    return call


def read(told: dict[str, Any], arrays: Path) -> tuple[dict[str, bytes], dict[str, tuple[int, ...]]]:
    """Raw values and shapes of the inputs, by name, in the dtypes that build.json tells."""
    with np.load(arrays) as given:
        values = [np.ascontiguousarray(given[str(at)]).astype(each["dtype"]) for at, each in enumerate(told["inputs"])]
    names = [each["name"] for each in told["inputs"]]
    return (
        {name: value.tobytes() for name, value in zip(names, values, strict=True)},
        {name: value.shape for name, value in zip(names, values, strict=True)},
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
