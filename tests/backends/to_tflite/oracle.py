"""PyTorch as the oracle of a rule: one function through trace, rules and LiteRT, and what its file holds."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from planish.backends.to_tflite.converter import Conversion, convert
from planish.backends.to_tflite.ends import ends_of
from planish.backends.to_tflite.files import needed, save
from planish.backends.to_tflite.gate import run_once
from planish.backends.to_tflite.runner import LiteRt
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


def run_file(made: Conversion, inputs: Inputs, apart: bool = True) -> list[Tensor]:
    """What LiteRT makes of the file; ``apart``: only after it has run in a process of its own."""
    ends = ends_of(made.graph, made.program)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        save(made.graph, file)
        if apart:
            run_once(file, ends, inputs.leaves())
        return LiteRt(file, ends, threads=1)(inputs.leaves())


def assert_rule_agrees(function: Callable[..., Any], *inputs: Tensor, tolerance: float = 1e-5) -> Conversion:
    made = converted(function, *inputs)
    wanted = [leaf for leaf in pytree.tree_leaves(function(*inputs)) if isinstance(leaf, Tensor)]
    got = run_file(made, Inputs(inputs), apart=False)
    for expected, own in zip(wanted, got, strict=True):
        assert relative_error(expected.detach(), own.numpy()) <= tolerance
    return made
