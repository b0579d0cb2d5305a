"""What student and teacher predict, side by side, as rows of scores or as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planish.compiler.errors import UserError
from planish.compiler.training_data import Batch
from planish.passes.training.labels import IGNORED, class_axis, describe, first_tensor, pairs, real_tensors


@dataclass(frozen=True)
class Seen:
    """One batch, what the student and the teacher say of it, and the features that a loss asked for, in its order."""

    student: Any
    teacher: Any
    batch: Batch
    student_features: tuple[Tensor, ...] = ()
    teacher_features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """One output of both: rows of class scores ``[rows, classes]``, or values of any shape."""

    student: Tensor
    teacher: Tensor
    labels: Tensor | None
    """Classes of the rows; None for values, and where the data has no labels."""
    classes: bool


def predictions(seen: Seen, loss: str, mask: str | None = None, ignored: int = IGNORED) -> Iterator[Prediction]:
    """All outputs of both models, output by output; only the main one where their numbers differ.

    An output is class scores if its label is a class, or if there is no label for it and it has two dimensions and
    more; else it is values. Rows whose label is ``ignored`` are left out, and rows where the input named ``mask`` is 0.
    Raises UserError with both shapes, and ``loss``, which asked, where they do not fit.
    """
    labels = _labels_by_output(seen)
    for student, teacher in _paired(seen):
        if student.shape != teacher.shape:
            raise UserError(
                f"Give a teacher whose outputs fit those of the student: {loss} got {describe(student)} of the student "
                f"and {describe(teacher)} of the teacher."
            )
        label = labels.get(id(student))
        axis = _axis(student, label)
        if axis is None:
            yield Prediction(student, teacher.to(student.dtype), None, classes=False)
            continue
        rows = [each.movedim(axis, -1).flatten(0, -2) for each in (student, teacher.to(student.dtype))]
        kept = _kept_rows(seen, student.movedim(axis, -1).shape[:-1], label, mask, ignored)
        flat = label.flatten().long() if label is not None else None
        if kept is not None:
            rows = [each[kept] for each in rows]
            flat = flat[kept] if flat is not None else None
        if rows[0].shape[0]:
            yield Prediction(rows[0], rows[1], flat, classes=True)


def _paired(seen: Seen) -> list[tuple[Tensor, Tensor]]:
    ours, theirs = seen.student, seen.teacher
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours.keys() == theirs.keys():
        theirs = {name: theirs[name] for name in ours}
    students, teachers = real_tensors(ours), real_tensors(theirs)
    if len(students) == len(teachers):
        return list(zip(students, teachers, strict=True))
    return [(first_tensor(ours), first_tensor(theirs))]


def _labels_by_output(seen: Seen) -> dict[int, Tensor]:
    """None where labels fit no output: whoever learns from them says so."""
    try:
        return {id(output): label for output, label in pairs(seen.student, seen.batch.labels)}
    except UserError:
        return {}


def _axis(output: Tensor, label: Tensor | None) -> int | None:
    if label is not None:
        return None if label.is_floating_point() else class_axis(output, label.shape)
    if output.ndim < 2:
        return None
    return output.ndim - 1 if output.ndim <= 3 else 1


def _kept_rows(
    seen: Seen, shape: torch.Size, label: Tensor | None, mask: str | None, ignored: int
) -> Tensor | None:  # fmt: skip
    kept = label != ignored if label is not None and bool((label == ignored).any()) else None
    if mask is not None:
        counting = _input(seen.batch, mask).bool()
        if counting.shape != shape:
            raise UserError(
                f"Name an input of the shape {list(shape)} as mask: {mask!r} is {describe(counting)}, and the outputs "
                f"have one score row for each of those."
            )
        kept = counting if kept is None else kept & counting
    return None if kept is None else kept.flatten()


def _input(batch: Batch, name: str) -> Tensor:
    found = batch.inputs.kwargs.get(name)
    if not isinstance(found, Tensor):
        raise UserError(f"Name a keyword input as mask: the model gets {', '.join(batch.inputs.kwargs) or 'none'}.")
    return found
