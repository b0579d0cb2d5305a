"""Runs files: here with ai-edge-litert and XNNPACK, or with the runtime of another Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor

from planish.backends.to_tflite.ends import Ends, from_file, to_file
from planish.backends.to_tflite.gate import run_once
from planish.compiler.contracts import Runner


class LiteRt(Runner):
    """The interpreter, all cores. The file has run in a process of its own before (gate.py)."""

    def __init__(self, file: Path, ends: Ends, threads: int) -> None:
        self._ends = ends
        self._interpreter = Interpreter(str(file), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._inputs = [detail["index"] for detail in self._interpreter.get_input_details()]
        self._outputs = [detail["index"] for detail in self._interpreter.get_output_details()]

    def __call__(self, leaves: Sequence[Any]) -> list[Tensor]:
        for index, array in zip(self._inputs, to_file(leaves, self._ends.inputs), strict=True):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        arrays = [np.asarray(self._interpreter.get_tensor(index)) for index in self._outputs]  # scalars are none
        return from_file(arrays, self._ends.outputs)


class Elsewhere(Runner):
    """The runtime of the interpreter ``python``: the old tflite-runtime needs another numpy than planish.

    Each call starts a process.
    """

    def __init__(self, file: Path, ends: Ends, python: str) -> None:
        self._file, self._ends, self._python = file, ends, python

    def __call__(self, leaves: Sequence[Any]) -> list[Tensor]:
        return from_file(run_once(self._file, self._ends, leaves, self._python), self._ends.outputs)
