"""What a student is trained on: all losses of ``Distill`` on one batch, each under its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from planish.compiler.options import kind
from planish.compiler.program import Program
from planish.compiler.training_data import Batch
from planish.passes.distill.cache import AnyTeacher
from planish.passes.distill.losses import Bound, Loss, OutputLoss
from planish.passes.distill.outputs import Seen
from planish.passes.distill.projectors import Projector
from planish.passes.distill.rows import row_losses
from planish.passes.distill.taps import tapped

EASIEST = 0.5
"""Share of a batch that a curriculum begins with."""


class Lessons(nn.Module):
    """The objective for a student that was ``tapped`` at ``points``. Its parameters are the projectors."""

    def __init__(
        self, losses: Sequence[Loss], teacher: AnyTeacher | None, student: Program, first: Batch,
        curriculum: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        looked_into = any(not isinstance(loss, OutputLoss) for loss in losses)
        inside = teacher.program() if looked_into and teacher is not None else None
        bound = [loss.bind(student, inside) for loss in losses]
        self.points = tuple(dict.fromkeys(name for each in bound for name in each.student))
        self._theirs = tuple(dict.fromkeys(name for each in bound for name in each.teacher))
        if teacher is not None:
            teacher.watch(self._theirs)
        self._teacher = (teacher,)  # in a tuple: a teacher that is a module is not trained along
        self._losses = dict(zip(_names(losses), zip(losses, bound, strict=True), strict=True))
        self.curriculum, self.share = curriculum, 0.0
        self.projectors = nn.ModuleDict()
        if any(each.projected for each in bound):
            self._make_projectors(student, first)

    def _make_projectors(self, student: Program, first: Batch) -> None:
        with torch.no_grad():
            _, ours = first.inputs.call(tapped(student, self.points))
            (teacher,) = self._teacher
            assert teacher is not None
            _, theirs = teacher(first)
        for name, (_, bound) in self._losses.items():
            seen = self._features(bound, ours, theirs)
            for position in bound.projected:
                student_feature, teacher_feature = seen[0][position], seen[1][position]
                if student_feature.shape != teacher_feature.shape:
                    self.projectors[f"{name}-{position}"] = Projector(student_feature, teacher_feature)

    def _features(
        self, bound: Bound, ours: Sequence[Tensor], theirs: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return (
            [ours[self.points.index(name)] for name in bound.student],
            [theirs[self._theirs.index(name)] for name in bound.teacher],
        )

    def forward(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        ours: Sequence[Tensor] = ()
        if self.points:
            outputs, ours = outputs
        (teacher,) = self._teacher
        answers, theirs = teacher(batch) if teacher is not None else (None, ())
        if self.curriculum is not None and self.share < self.curriculum:
            easy = self._easy(answers, batch)
            outputs, answers, ours, theirs, batch = _rows(easy, batch, outputs, answers, ours, theirs)
        return {
            name: loss.weight * bound.value(self._seen(name, bound, outputs, answers, batch, ours, theirs))
            for name, (loss, bound) in self._losses.items()
            if loss.weight
        }

    def _seen(
        self, name: str, bound: Bound, outputs: Any, answers: Any, batch: Batch, ours: Sequence[Tensor],
        theirs: Sequence[Tensor],
    ) -> Seen:  # fmt: skip
        student, teacher = self._features(bound, ours, theirs)
        for position in bound.projected:
            key = f"{name}-{position}"
            if key in self.projectors:
                student[position] = self.projectors[key](student[position], teacher[position])
        return Seen(outputs, answers, batch, tuple(student), tuple(teacher))

    def _easy(self, answers: Any, batch: Batch) -> Tensor:
        """The rows that the teacher finds easiest: half of them at first, all when the curriculum has ended."""
        assert self.curriculum is not None
        count = round(batch.rows * (EASIEST + (1 - EASIEST) * self.share / self.curriculum))
        return row_losses(answers, batch.labels).argsort()[: max(1, count)]


def _names(losses: Sequence[Loss]) -> list[str]:
    """``soft-targets``, and ``soft-targets-2`` for the second of them."""
    names: list[str] = []
    for loss in losses:
        name = kind(type(loss))
        count = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(name if not count else f"{name}-{count + 1}")
    return names


def _rows(chosen: Tensor, batch: Batch, *values: Any) -> tuple[Any, ...]:
    """``values`` and ``batch`` with only the chosen rows."""

    def pick(leaf: Tensor) -> Tensor:
        return leaf[chosen] if leaf.ndim and leaf.shape[0] == rows else leaf

    rows = batch.rows
    return (*(pytree.tree_map_only(Tensor, pick, value) for value in values), batch.map_tensors(pick))
