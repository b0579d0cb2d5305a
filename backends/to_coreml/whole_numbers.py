"""Operators on whole numbers in terms of the arithmetic of 32-bit integers that MIL has; exact. Rules:

1. Bits: and, or, xor of two numbers are sums over their bits, halved out by whole divisions. The sign is the bit that
   no power of two in 32 bits stands for. Shifts are products and whole divisions.
2. The place of the largest value of a pool's window is an argmax over one strided slice for each place of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
_BITS = 31
"""Besides the sign."""


def _bits(x: Tensor, powers: Tensor) -> Tensor:
    """[..., 31]: the lowest bit first."""
    return torch.remainder(torch.div(x.unsqueeze(-1), powers, rounding_mode="floor"), 2)


def _bitwise(combine: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Rule 1. ``combine`` gives 0 or 1 for two bits, by arithmetic alone."""

    def of_bits(x: Tensor, y: Any) -> Any:
        if x.dtype is torch.bool:
            return NotImplemented
        y = y if isinstance(y, Tensor) else torch.full_like(x, y)
        powers = torch.arange(_BITS).to(torch.float32).exp2().to(x.dtype)
        bits = (combine(_bits(x, powers), _bits(y, powers)) * powers).sum(-1)
        signs = combine((x < 0).to(x.dtype), (y < 0).to(x.dtype))
        return (bits + signs * -(2**_BITS)).to(x.dtype)

    return of_bits


def bitwise_not(x: Tensor) -> Any:
    return NotImplemented if x.dtype is torch.bool else -x - 1


def shift_left(x: Tensor, by: int) -> Tensor:
    return x * (1 << by)


def shift_right(x: Tensor, by: int) -> Tensor:
    return torch.div(x, 2**by, rounding_mode="floor")


def max_pool2d_with_indices(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1), ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rule 2."""
    stride = stride or kernel
    size, step, border, spread = ([*each] * (2 // len(each)) for each in (kernel, stride, padding, dilation))
    values = F.max_pool2d(x, size, step, border, spread, ceil_mode)
    spans = [(int(values.shape[at - 2]) - 1) * step[at] + 1 for at in (0, 1)]
    missing = [spans[at] + spread[at] * (size[at] - 1) - border[at] - int(x.shape[at - 2]) for at in (0, 1)]
    padded = F.pad(x, [border[1], max(missing[1], 0), border[0], max(missing[0], 0)], value=-math.inf)
    windows = [
        padded[..., top : top + spans[0] : step[0], left : left + spans[1] : step[1]]
        for top in range(0, size[0] * spread[0], spread[0])
        for left in range(0, size[1] * spread[1], spread[1])
    ]
    best = torch.stack(windows, -3).argmax(-3)
    rows = torch.arange(values.shape[-2]).reshape(-1, 1) * step[0] - border[0]
    columns = torch.arange(values.shape[-1]) * step[1] - border[1]
    down = torch.div(best, size[1], rounding_mode="floor") * spread[0] + rows
    return values, down * int(x.shape[-1]) + torch.remainder(best, size[1]) * spread[1] + columns


_AND, _OR, _XOR = (
    _bitwise(lambda a, b: a * b), _bitwise(lambda a, b: a + b - a * b), _bitwise(lambda a, b: a + b - 2 * a * b),
)  # fmt: skip
WHOLE_NUMBERS: dict[Any, Callable[..., Any]] = {
    aten.bitwise_and.Tensor: _AND, aten.bitwise_or.Tensor: _OR, aten.bitwise_xor.Tensor: _XOR,
    aten.bitwise_and.Scalar: _AND, aten.bitwise_or.Scalar: _OR, aten.bitwise_xor.Scalar: _XOR,
    aten.bitwise_not.default: bitwise_not,
    aten.__lshift__.Scalar: shift_left, aten.bitwise_left_shift.Tensor_Scalar: shift_left,
    aten.__rshift__.Scalar: shift_right, aten.bitwise_right_shift.Tensor_Scalar: shift_right,
    aten.max_pool2d_with_indices.default: max_pool2d_with_indices,
}  # fmt: skip
