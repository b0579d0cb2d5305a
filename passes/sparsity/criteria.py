"""What a weight is worth: by itself, by its inputs, or by what the others can make up for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from planish.passes.sparsity.patterns import Pattern
from planish.passes.sparsity.sparsegpt import reconstruct

Pruned = tuple[Tensor, Tensor]
"""What is left of a weight, and the bool mask of it, both [groups, rows, columns]."""


@dataclass(frozen=True)
class Criterion:
    """How weights are chosen. ``observe`` sums up rows of inputs; None: weights alone decide."""

    prune: Callable[[Tensor, Tensor | None, Pattern, float], Pruned]
    """(weight [groups, rows, columns], sum of what was observed, pattern, share of zeros)."""
    observe: Callable[[Tensor], Tensor] | None = None
    """[groups, n, columns] -> a statistic, which is added up over calls."""


def magnitude(weight: Tensor, seen: Tensor | None, pattern: Pattern, ratio: float) -> Pruned:
    """The largest stay."""
    keep = pattern.keep(weight.abs().reshape(1, -1, weight.shape[2]), ratio).reshape(weight.shape)
    return weight * keep, keep


def wanda(weight: Tensor, seen: Tensor | None, pattern: Pattern, ratio: float) -> Pruned:
    """The largest products of weight and norm of its input, output by output (arXiv:2306.11695)."""
    assert seen is not None
    scores = weight.abs() * seen.sqrt()[:, None]
    keep = pattern.keep(scores.reshape(-1, pattern.rows, weight.shape[2]), ratio).reshape(weight.shape)
    return weight * keep, keep


def sparsegpt(weight: Tensor, seen: Tensor | None, pattern: Pattern, ratio: float) -> Pruned:
    """Those that the others can least make up for, which then do (arXiv:2301.00774)."""
    assert seen is not None
    return reconstruct(weight, seen, pattern, ratio)


def squared_norms(rows: Tensor) -> Tensor:
    """[groups, columns]"""
    return rows.square().sum(1)


def gram(rows: Tensor) -> Tensor:
    """[groups, columns, columns]"""
    return rows.transpose(1, 2) @ rows


CRITERIA: Mapping[str, Criterion] = {
    "magnitude": Criterion(magnitude),
    "wanda": Criterion(wanda, squared_norms),
    "sparsegpt": Criterion(sparsegpt, gram),
}


def kept_share(weight: Tensor, keep: Tensor) -> float:
    """How much of the sum of absolute values the mask keeps."""
    whole = float(weight.abs().sum(dtype=torch.float64))
    return float((weight * keep).abs().sum(dtype=torch.float64)) / whole if whole else 1.0
