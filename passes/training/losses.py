"""The losses of a stretch of training: their means, and that they are finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from planish.compiler.errors import UserError
from planish.compiler.inputs import check_tensors
from planish.compiler.training_data import Batch

Terms = dict[str, Tensor]


class Place(NamedTuple):
    """Where in a training a loss was computed, all counted from 0."""

    step: int
    epoch: int
    position: int
    batch: Batch


class Losses:
    """Sums of loss terms over the steps since the last evaluation."""

    def __init__(self) -> None:
        self.sums: Terms = {}
        self.steps = 0
        self._unchecked: tuple[Place, Terms, Tensor] | None = None

    def add(self, terms: Terms, loss: Tensor, share: float, place: Place) -> None:
        """Take in the ``terms`` of a batch that is ``share`` of its step, and check the batch before it.

        One batch late, so that no step waits for a GPU to finish it.
        """
        self.check()
        detached = {name: term.detach() for name, term in terms.items()}
        self._unchecked = (place, detached, loss.detach())
        for name, term in detached.items():
            scaled = term if share == 1 else term * share
            self.sums[name] = self.sums[name] + scaled if name in self.sums else scaled

    def check(self) -> None:
        """Raise UserError if the loss of the last batch is not finite."""
        if self._unchecked is None:
            return
        place, terms, loss = self._unchecked
        self._unchecked = None
        if not math.isfinite(loss.item()):
            where = f"step {place.step} (batch {place.position} of epoch {place.epoch})"
            check_tensors(place.batch.inputs, f"the training batch of {where}")
            told = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
            raise UserError(f"Lower the learning rate or check the labels: the loss is not finite at {where}: {told}.")

    def means(self) -> dict[str, float]:
        return {name: total.item() / max(1, self.steps) for name, total in self.sums.items()}

    def restore(self, steps: int, sums: Mapping[str, float]) -> None:
        self.steps, self.sums = steps, {name: torch.tensor(total) for name, total in sums.items()}

    def clear(self) -> None:
        self.sums, self.steps = {}, 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {mean:.4g}" for name, mean in self.means().items())
