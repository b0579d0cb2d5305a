"""PyTorch as the oracle of a rule: one function through trace, rules and LiteRT, and what its file holds."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from planish.backends.to_tflite.converter import Conversion, convert
from planish.backends.to_tflite.ends import ends_of, from_file, to_file
from planish.backends.to_tflite.files import needed, save
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.trace import trace_with_notes
from tests.backends.to_onnx.families import relative_error
from tests.backends.to_onnx.family_base import Function


def traced(model: nn.Module, *inputs: Tensor) -> Program:
    """``model`` with all sizes fixed, as TFLite takes it."""
    return trace_with_notes(model.eval(), Inputs(inputs), dynamic_batch=False).program


def converted(function: Callable[..., Any], *inputs: Tensor) -> Conversion:
    return convert(traced(Function(lambda self, *args: function(*args)), *inputs))


def kinds(made: Conversion) -> Counter[str]:
    """The operators of the file, counted."""
    return Counter(operator.kind for operator in needed(made.graph))


def run_file(made: Conversion, inputs: Inputs) -> list[Tensor]:
    """What LiteRT makes of the file, in another process: one that it crashes is not this one."""
    ends = ends_of(made.graph, made.program)
    with tempfile.TemporaryDirectory() as folder:
        file, given, outputs = (Path(folder) / name for name in ("model.tflite", "inputs.npz", "outputs.npz"))
        save(made.graph, file)
        np.savez(given, *to_file(inputs.leaves(), ends.inputs))
        worker = _worker()
        print(file, given, outputs, sep="\t", file=worker.stdin, flush=True)
        if not worker.stdout.readline():  # type: ignore[union-attr]
            _worker.cache_clear()
            raise AssertionError(f"LiteRT cannot run the file: exit status {worker.wait()}")
        with np.load(outputs) as arrays:
            return from_file([*arrays.values()], ends.outputs)


@functools.cache
def _worker() -> subprocess.Popen[str]:
    """Ends with this process, whose end of the pipe it reads from."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("files_worker.py"))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def assert_rule_agrees(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 1e-5) -> Conversion:
    made = converted(function, *inputs)
    wanted = [leaf for leaf in pytree.tree_leaves(function(*inputs)) if isinstance(leaf, Tensor)]
    got = run_file(made, Inputs(inputs))
    for expected, own in zip(wanted, got, strict=True):
        assert relative_error(expected.detach(), own.numpy()) <= tolerance
    return made
