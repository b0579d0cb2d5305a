"""Every model family at hand through trace -> lower -> LiteRT: ``python -m tests.backends.to_tflite.families``.

Prints one line a family: the largest error against PyTorch, how many TRANSPOSE the file holds and how it was lowered,
or what failed. Names on the command line pick families; without any all of them run.
"""

from __future__ import annotations

import sys

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from planish.backends.to_tflite.converter import Conversion, convert
from planish.backends.to_tflite.lower import output_leaves
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace_with_notes
from tests.backends.sweep import Outcome, first_line, sweep
from tests.backends.to_onnx.families import Family, relative_error, shake
from tests.backends.to_tflite.oracle import kinds, run_file


def attempt(family: Family) -> Outcome:
    """Trace, lower and compare ``family``; what raises on the way ends up in the Outcome."""
    torch.manual_seed(0)
    model, inputs = shake(family.build()).eval(), family.inputs(2)
    try:
        program = trace_with_notes(model, inputs, dynamic_batch=False).program
    except Exception as failure:  # the table lists it
        return Outcome(failure=first_line(failure))
    try:
        made = convert(program)
        how = f"{kinds(made)['TRANSPOSE']} TRANSPOSE. {made.note}"
        error = largest_error(model, inputs, made)
    except Exception as failure:
        return Outcome(traced=True, failure=first_line(failure))
    return Outcome(True, how, error, tolerance=family.tolerance)


def largest_error(model: nn.Module, inputs: Inputs, made: Conversion) -> float:
    with torch.no_grad():
        wanted = pytree.tree_leaves(inputs.call(model))
    ours = run_file(made, inputs)
    computed = [isinstance(leaf, fx.Node) for leaf in output_leaves(made.program)]  # the rest is None or a number
    leaves = [torch.as_tensor(leaf).detach() for leaf, node in zip(wanted, computed, strict=True) if node]
    return max(relative_error(a, b.numpy()) for a, b in zip(leaves, ours, strict=True))


if __name__ == "__main__":
    sys.exit(min(sweep(attempt, sys.argv[1:]), 1))
