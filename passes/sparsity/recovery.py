"""Training that keeps zeros, and training during which they become more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from planish.compiler.contracts import Context
from planish.compiler.program import Program, get_attribute
from planish.passes.sparsity.layers import Layer, weight_name
from planish.passes.sparsity.patterns import Pattern
from planish.passes.training.recover import SPARSE, recover
from planish.passes.training.settings import Training


def mark_sparse(layers: list[Layer]) -> None:
    """Have every training from here on keep the zeros of ``layers``: ``recover`` does."""
    for layer in layers:
        for use in layer.uses:
            use.weight.meta[SPARSE] = True


def train_sparse(program: Program, context: Context, training: Training) -> Program:
    """``program`` after training, with all zeros of its sparse weights where they were."""
    return recover(program, context, training.part("sparse")).program


def train_while_thinning(
    program: Program, layers: list[Layer], shares: Mapping[Layer, float], pattern: Pattern, context: Context,
    training: Training,
) -> Program:  # fmt: skip
    """``program`` after training, while more and more of its weights become zero.

    No metric picks the best weights on the way: the best would be those that have the fewest zeros.
    """
    blind = replace(context, metric=None)
    return recover(program, blind, training.part("thinning"), after_step=thinning(layers, shares, pattern)).program


def thinning(layers: list[Layer], shares: Mapping[Layer, float], pattern: Pattern) -> Callable[[Program, float], None]:
    """An ``after_step`` of the cubic schedule (arXiv:1710.01878): 1 - (1 - t)³ of the zeros after share t of it.

    What the pattern would remove by magnitude goes, the smallest first; what grows meanwhile may come back.
    """

    def thin(program: Program, done: float) -> None:
        reached = 1 - (1 - min(done, 1.0)) ** 3
        for layer in layers:
            weight = get_attribute(program.graph_module, weight_name(layer))
            matrix = layer.matrix(weight)
            weight.copy_(layer.weight(matrix * _partly_kept(matrix, pattern, shares[layer], reached)))

    return thin


def _partly_kept(matrix: Tensor, pattern: Pattern, ratio: float, reached: float) -> Tensor:
    """The mask of ``pattern`` by magnitude, but only the smallest ``reached`` of what it removes."""
    magnitude = matrix.abs()
    kept = pattern.keep(magnitude.reshape(1, -1, matrix.shape[2]), ratio).reshape(matrix.shape)
    gone = magnitude[~kept]
    count = round(reached * len(gone))
    if count == len(gone):
        return kept
    threshold = gone.kthvalue(count).values if count else torch.full((), -1.0)
    return kept | (magnitude > threshold)


def divided(training: Training, ramp: float) -> tuple[Training, Training]:
    """``training`` in two: its first ``ramp``, and the rest; every bound is divided."""

    def part(share: float) -> Training:
        steps = None if training.steps is None else max(1, round(share * training.steps))
        return replace(
            training, epochs=_times(share, training.epochs), minutes=_times(share, training.minutes), steps=steps
        )

    return part(ramp), part(1 - ramp)


def _times(share: float, bound: float | None) -> float | None:
    return None if bound is None else share * bound
