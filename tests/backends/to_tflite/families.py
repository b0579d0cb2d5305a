"""Every model family at hand through trace -> lower -> LiteRT: ``python -m tests.backends.to_tflite.families``.

Prints one line a family: how it was lowered, the largest error against PyTorch, how many TRANSPOSE the file holds,
or what failed. Names on the command line pick families; without any all of them run.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from planish.backends.to_tflite.converter import Conversion, convert
from planish.backends.to_tflite.lower import output_leaves
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace_with_notes
from tests.backends.to_onnx.families import Family, relative_error, shake
from tests.backends.to_tflite.oracle import kinds, run_file


@dataclass(frozen=True)
class Outcome:
    traced: bool = False
    lowered: str = ""
    transposes: int = 0
    error: float | None = None
    """Largest difference to PyTorch, relative to the largest value of that output."""
    failure: str = ""
    tolerance: float = 1e-4

    @property
    def good(self) -> bool:
        return self.error is not None and self.error <= self.tolerance


def attempt(family: Family) -> Outcome:
    """Trace, lower and compare ``family``; what raises on the way ends up in the Outcome."""
    torch.manual_seed(0)
    model, inputs = shake(family.build()).eval(), family.inputs(2)
    try:
        program = trace_with_notes(model, inputs, dynamic_batch=False).program
    except Exception as failure:  # the table lists it
        return Outcome(failure=_first_line(failure))
    try:
        made = convert(program)
        transposes = kinds(made)["TRANSPOSE"]
        error = largest_error(model, inputs, made)
    except Exception as failure:
        return Outcome(traced=True, failure=_first_line(failure))
    return Outcome(True, made.note, transposes, error, tolerance=family.tolerance)


def largest_error(model: nn.Module, inputs: Inputs, made: Conversion) -> float:
    with torch.no_grad():
        wanted = pytree.tree_leaves(inputs.call(model))
    ours = run_file(made, inputs)
    computed = [isinstance(leaf, fx.Node) for leaf in output_leaves(made.program)]  # the rest is None or a number
    leaves = [torch.as_tensor(leaf).detach() for leaf, node in zip(wanted, computed, strict=True) if node]
    return max(relative_error(a, b.numpy()) for a, b in zip(leaves, ours, strict=True))


def _first_line(failure: BaseException) -> str:
    text = str(failure).strip()
    return f"{type(failure).__name__}: {text.splitlines()[0][:260]}" if text else type(failure).__name__


def main(names: list[str]) -> int:
    from tests.backends.to_onnx.family_models import families

    chosen = {family.name: family for family in families()}
    bad = 0
    for name in names or chosen:
        start = time.monotonic()
        outcome = attempt(chosen[name])
        bad += not outcome.good
        error = "-" if outcome.error is None else f"{outcome.error:.1e}"
        state = "ok  " if outcome.good else "FAIL"
        seconds = f"{time.monotonic() - start:5.1f} s"
        print(f"{state} {name:36} {error:8} {outcome.transposes:3} TRANSPOSE {seconds}  ", end="")
        print(outcome.failure or outcome.lowered, flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
