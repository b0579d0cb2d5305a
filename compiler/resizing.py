"""Resizing as products with matrices, which PyTorch's own operators tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def resize_matrices(
    operator: Any, args: Sequence[Any], old: Sequence[int], new: Sequence[int], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """[new, old] for each spatial dimension: the operator applied to a unit image of that height or width.

    ``args``: what the operator takes behind its input: the size first, the factors last. The other dimensions have a
    size of 2: PyTorch 2.13 resizes the rows of images of width 1 wrongly with a filter against aliasing.
    """
    size, *rest, factors = args
    found = []
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        others = [before if axis == own else 1 for own in range(len(old))]
        wide = [before if axis == own else 2 for own in range(len(old))]
        unit = torch.eye(before, dtype=dtype).reshape(1, before, *others).expand(1, before, *wide).contiguous()
        sizes = None if size is None else [after if axis == own else 2 for own in range(len(old))]
        scales = None if factors is None else [factors[own] if axis == own else 1.0 for own in range(len(old))]
        result = operator(unit, sizes, *rest, scales)
        found.append(result[0].movedim(1 + axis, 1).flatten(2)[..., 0].t().contiguous())
    return found
