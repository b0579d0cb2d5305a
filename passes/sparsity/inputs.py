"""The inputs of a layer as the rows that its matrix multiplies; convolutions by unfolding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.compiler.program import arguments
from planish.passes.sparsity.layers import Layer, Use


def rows_of(layer: Layer, use: Use, x: Tensor, at_most: int) -> Tensor:
    """[groups, n, columns]: what each row of the matrix is multiplied by in this call, evenly thinned to ``at_most``.

    In float32 at least: statistics are sums over many rows.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if layer.kind == "convolution":
        return _windows(layer, use, x, at_most)
    if layer.kind == "transposed convolution":
        spatial = len(layer.shape) - 2
        x = x.reshape(-1, layer.groups, layer.inputs, x.shape[-spatial:].numel())
        return _thinned(x.permute(1, 0, 3, 2).flatten(1, 2), at_most)
    return _thinned(x.reshape(1, -1, layer.inputs), at_most)


def _thinned(rows: Tensor, at_most: int) -> Tensor:
    # an odd stride does not fall in step with the even sizes of images
    stride = -(-rows.shape[1] // at_most)
    return rows[:, :: stride | 1 if stride > 1 else 1]


def _windows(layer: Layer, use: Use, x: Tensor, at_most: int) -> Tensor:
    given, kernel = arguments(use.node), layer.shape[2:]
    rank = len(kernel)
    dilation, stride = _each(given["dilation"], rank), _each(given["stride"], rank)
    x = F.pad(x.reshape(-1, *x.shape[-rank - 1 :]), _amounts(given["padding"], kernel, dilation))
    for axis, (size, step, every) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, every * (size - 1) + 1, step)[..., ::every]
    # [batch, channels, positions …, kernel …]: thin before anything is copied, a window is many values
    x = _thinned_positions(x, rank, at_most)
    x = x.unflatten(1, (layer.groups, layer.inputs)).movedim(2, -1)  # [batch, groups, positions …, kernel …, channels]
    return x.movedim(1, 0).flatten(1, 1 + rank).flatten(2)


def _thinned_positions(x: Tensor, rank: int, at_most: int) -> Tensor:
    """``x`` [batch, channels, positions …] with about ``at_most`` positions: a stride along the last axes."""
    count = x.shape[0] * x.shape[2 : 2 + rank].numel()
    for axis in reversed(range(2, 2 + rank)):
        stride = min(x.shape[axis], -(-count // at_most))
        if stride > 1:
            start = (x.shape[axis] - 1) % stride // 2
            kept = x[(slice(None),) * axis + (slice(start, None, stride),)]
            count = count * kept.shape[axis] // x.shape[axis]
            x = kept
    return x


def _amounts(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """As ``F.pad`` takes them: innermost axis first, before and behind."""
    if padding == "valid":
        return [0] * (2 * len(kernel))
    if padding == "same":
        totals = [every * (size - 1) for size, every in zip(kernel, dilation, strict=True)]
        return [amount for total in reversed(totals) for amount in (total // 2, total - total // 2)]
    return [amount for each in reversed(_each(padding, len(kernel))) for amount in (each, each)]


def _each(value: Any, count: int) -> list[int]:
    listed = [*value] if isinstance(value, (list, tuple)) else [value]
    return listed * count if len(listed) == 1 else listed
