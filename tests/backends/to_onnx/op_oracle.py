"""PyTorch as the oracle of a rule: one function through trace, rules and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from torch import Tensor
from torch.utils import _pytree as pytree

from planish.backends.to_onnx.lower import to_onnx
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace
from tests.backends.to_onnx.families import relative_error, run_onnx
from tests.backends.to_onnx.family_base import Function


def lowered(function: Callable[..., Any], *inputs: Tensor, opset: int = 20) -> ir.Model:
    return to_onnx(trace(Function(lambda self, *args: function(*args)), Inputs(inputs)), opset)


def assert_rule_agrees(function: Callable[..., Any], *inputs: Tensor, opset: int = 20, tolerance: float = 1e-5) -> None:
    """``inputs`` have a batch of at least two; the model is traced with two rows of it and run with all."""
    model = lowered(function, *(tensor[:2] for tensor in inputs), opset=opset)
    wanted = [leaf for leaf in pytree.tree_leaves(function(*inputs)) if isinstance(leaf, Tensor)]
    for expected, got in zip(wanted, run_onnx(model, Inputs(inputs)), strict=True):
        assert relative_error(expected, got) <= tolerance
