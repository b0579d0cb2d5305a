"""Every model family at hand through trace -> lower -> ONNX Runtime: ``python -m tests.backends.to_onnx.families``.

Prints one line a family: how it was lowered, the largest error against PyTorch at batches 1, 2 and 3, or what
failed. Names on the command line pick families; without any all of them run (about 20 minutes on two cores).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from planish.backends.to_onnx.exporter import lower_any
from planish.backends.to_onnx.files import save
from planish.backends.to_onnx.lower import output_leaves
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.trace import trace
from tests.backends.sweep import Outcome, first_line, sweep

OPSET = 20


@dataclass(frozen=True)
class Family:
    """One model of a kind. ``inputs`` draws its arguments for a batch of the given size."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    tolerance: float = 1e-4
    """Largest error relative to the largest value of an output."""


def attempt(family: Family) -> Outcome:
    """Trace, lower and compare ``family``; what raises on the way ends up in the Outcome."""
    torch.manual_seed(0)
    model = shake(family.build()).eval()
    try:
        program = trace(model, family.inputs(2))
    except Exception as failure:  # the table lists it
        return Outcome(failure=first_line(failure))
    try:
        onnx_model, how = lower_any(program, OPSET)
    except Exception as failure:
        return Outcome(traced=True, failure=first_line(failure))
    try:
        error = largest_error(family, model, program, onnx_model)
        return Outcome(traced=True, lowered=how, error=error, tolerance=family.tolerance)
    except Exception as failure:
        return Outcome(traced=True, lowered=how, failure=first_line(failure))


def shake(model: nn.Module) -> nn.Module:
    """Move constants off 0, 1 and 1e-6: with a fresh layer scale or batch norm, wrong branches would not show."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for parameter in model.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            center = float(parameter.detach().flatten()[0])
            reach = 0.2 * abs(center) + 0.1
            nn.init.uniform_(parameter, center - reach, center + reach)
    return model


def largest_error(family: Family, model: nn.Module, program: Program, onnx_model: Any) -> float:
    batches = (1, 2, 3) if program.dynamic_axes else (2,)
    worst = 0.0
    for batch in batches:
        torch.manual_seed(batch)
        inputs = family.inputs(batch)
        with torch.no_grad():
            wanted = inputs.call(model)
        ours = run_onnx(onnx_model, inputs)
        computed = [isinstance(leaf, fx.Node) for leaf in output_leaves(program)]  # the rest is None or a number
        leaves = [
            torch.as_tensor(leaf).detach()
            for leaf, node in zip(pytree.tree_leaves(wanted), computed, strict=True)
            if node
        ]
        if len(leaves) != len(ours):
            raise AssertionError(f"{len(ours)} outputs instead of {len(leaves)}")
        worst = max([worst, *(relative_error(a, b) for a, b in zip(leaves, ours, strict=True))])
    return worst


def run_onnx(model: Any, inputs: Inputs) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", options)
    tensors = [leaf for leaf in inputs.leaves() if isinstance(leaf, Tensor)]
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}))


def relative_error(wanted: Tensor, got: np.ndarray) -> float:
    expected = wanted.numpy()
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise AssertionError(f"{got.dtype}{got.shape} instead of {expected.dtype}{expected.shape}")
    if expected.size == 0:
        return 0.0
    if expected.dtype == bool:
        return float((expected != got).mean())
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    difference = np.abs(expected.astype(wide) - got.astype(wide)).max()
    return float(difference / max(np.abs(expected.astype(wide)).max(), 1e-12))


if __name__ == "__main__":
    sys.exit(min(sweep(attempt, sys.argv[1:]), 1))
