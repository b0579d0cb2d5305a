"""A Program as a device computes it whose floats have 16 bits: what such rounding costs, to tell it from an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.program import Program
from planish.compiler.signature import Signature

LARGEST = float(torch.finfo(torch.float16).max)


def in_half_precision(program: Program) -> Callable[..., Any]:
    """``program`` with every constant and every result rounded to float16; sums within an operator stay float32.

    Values beyond the range end at its ends, so that the mask of an attention does not become a NaN.
    """
    interpreter = _Rounding(program.graph_module)
    signature = Signature.of(program.graph)

    def run(*args: Any, **kwargs: Any) -> Any:
        results = interpreter.run(*signature.flatten(args, kwargs), enable_io_processing=False)
        return signature.unflatten([*results] if isinstance(results, (tuple, list)) else [results])

    return run


def rounded(value: Tensor) -> Tensor:
    """``value`` with the precision of float16, in the dtype that it had."""
    if not value.is_floating_point():
        return value
    near = torch.where(value.isinf(), value, value.clamp(-LARGEST, LARGEST))
    return near.to(torch.float16).to(value.dtype)


class _Rounding(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        return torch.utils._pytree.tree_map_only(Tensor, rounded, result) if n.op != "output" else result
