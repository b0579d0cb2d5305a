"""Mixtures of the rows of a batch: what a teacher says of them tells a student more than of rows it was trained on.

A student that sees many mixtures, each with what the teacher says of that very mixture, imitates the function and not
its values at a few points (arXiv:2106.05237). The less data there is, the more it helps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.training_data import Batch


def blended(batch: Batch) -> Batch:
    """Each row mixed with another one; no labels.

    By mixup (arXiv:1710.09412); where all inputs are images, for half of the batches by CutMix (arXiv:1905.04899).

    Raises UserError for inputs without real numbers: tokens do not mix.
    """
    rows = batch.rows
    mixing = [leaf for leaf in batch.inputs.leaves() if isinstance(leaf, Tensor) and _mixes(leaf, rows)]
    if not mixing:
        raise UserError("Leave out Distill(blended=True): no input of this model has rows of real numbers to mix.")
    order = torch.randperm(rows)
    share = torch.rand(rows, device=mixing[0].device)
    window = _window(mixing)

    def mix(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not _mixes(leaf, rows):
            return leaf
        others = leaf[order.to(leaf.device)]
        if window is not None:
            return torch.where(window.to(leaf.device), others, leaf)
        own = share.to(leaf).reshape(-1, *[1] * (leaf.ndim - 1))
        return own * leaf + (1 - own) * others

    mixed: Inputs = batch.inputs.map(mix)
    return Batch(mixed)


def _mixes(leaf: Tensor, rows: int) -> bool:
    return leaf.is_floating_point() and leaf.ndim > 1 and leaf.shape[0] == rows


def _window(mixing: list[Tensor]) -> Tensor | None:
    """Where images are replaced by others, for CutMix; None for mixup."""
    sizes = {tuple(leaf.shape[2:]) for leaf in mixing}
    if any(leaf.ndim != 4 for leaf in mixing) or len(sizes) > 1 or torch.rand(()) < 0.5:
        return None
    ((height, width),) = sizes
    side = float(torch.rand(()).sqrt())
    tall, wide = int(side * height), int(side * width)
    top, left = (int(torch.randint(limit, ())) for limit in (height - tall + 1, width - wide + 1))
    window = torch.zeros(height, width, dtype=torch.bool)
    window[top : top + tall, left : left + wide] = True
    return window
