"""Runs one file a line, in a process that is started once for many: MODEL, INPUTS.npz and OUTPUTS.npz, tab between."""

from __future__ import annotations

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def run(model: str, inputs: str, outputs: str) -> None:
    interpreter = Interpreter(model, num_threads=1)
    interpreter.allocate_tensors()
    with np.load(inputs) as arrays:
        for detail, array in zip(interpreter.get_input_details(), arrays.values(), strict=True):
            interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    results = [np.asarray(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]
    np.savez(outputs, *results)


for line in sys.stdin:
    run(*line.rstrip("\n").split("\t"))
    print("done", flush=True)
