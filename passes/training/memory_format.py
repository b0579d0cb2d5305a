"""Channels innermost: convolutions of images compute so, and reorder what lies otherwise.

ResNet-20 in bf16 trains 1.2 times as fast on a Xeon with AMX.
https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planish.compiler.inputs import Inputs
from planish.compiler.program import Program

aten = torch.ops.aten

_CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input)
_READ_STRIDES = (aten.as_strided.default, aten.view_as_complex.default, aten.view_as_real.default, aten.view.dtype)
"""Ops that read memory as it lies; all others compute the same in any format (views are traced as reshapes)."""


def suits_channels_last(program: Program) -> bool:
    """Whether ``program`` convolves images, and computes the same on images in any memory format."""
    return any(program.calls(*_CONVOLUTIONS)) and not any(program.calls(*_READ_STRIDES))


def channels_last(inputs: Inputs) -> Inputs:
    """``inputs`` with the channels of images innermost in memory; their values, shapes and other inputs stay."""
    return inputs.map(_innermost)


def _innermost(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or leaf.ndim != 4 or not leaf.is_floating_point():
        return leaf
    return leaf.contiguous(memory_format=torch.channels_last)
