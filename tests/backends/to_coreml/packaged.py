"""One function through trace, conversion, the saved package and its reference evaluation, against PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from planish.backends.to_coreml.backend import FILE, CoreMLBackend
from planish.backends.to_coreml.evaluator import Evaluator
from planish.backends.to_coreml.mil import Package
from planish.backends.to_coreml.runner import PackageRunner
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.trace import trace
from tests.backends.to_coreml.families import relative_error
from tests.backends.to_onnx.family_base import Function

FLOAT32 = CoreMLBackend("float32")


def program_of(function: Callable[..., Any] | nn.Module, *inputs: Tensor) -> Program:
    module = function if isinstance(function, nn.Module) else Function(lambda self, *args: function(*args))
    return trace(module.eval(), Inputs(tuple(tensor[:2] for tensor in inputs)))


def assert_agrees(
    function: Callable[..., Any] | nn.Module, *inputs: Tensor, target: str = "iphone-15", tolerance: float = 1e-5
) -> Package:
    """``inputs`` have a batch of three; traced with two rows of it and evaluated with all. Returns the package."""
    program = program_of(function, *inputs)
    with tempfile.TemporaryDirectory() as scratch:
        lowered = FLOAT32.lower(program, registry().find_profile(target), Path(scratch))
        assert lowered.cannot_run is None, lowered.cannot_run
        with torch.no_grad():
            wanted = [leaf for leaf in pytree.tree_leaves(function(*inputs)) if isinstance(leaf, Tensor)]
        got = PackageRunner(Path(scratch) / FILE, lowered.runtime)(inputs)
        package = Evaluator(Path(scratch) / FILE).package
    for a, b in zip(wanted, got, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert relative_error(a, b) <= tolerance
    return package


def kinds(package: Package) -> list[str]:
    return [operation.type for operation in package.block.operations if operation.type != "const"]
