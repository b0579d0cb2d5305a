"""Before hours are spent: is the teacher worth imitating on this data, and at which temperature?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from planish.compiler.program import Program
from planish.compiler.progress import Stages
from planish.compiler.training_data import Batch, TrainingData
from planish.passes.distill.cache import AnyTeacher
from planish.passes.distill.outputs import Prediction, Seen, predictions
from planish.passes.training.fit import fit
from planish.passes.training.labels import task_loss
from planish.passes.training.settings import Training
from planish.passes.training.streams import generators_kept

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
BATCHES = 8
STEPS = 16


@dataclass(frozen=True)
class Diagnosis:
    """Figures from the first batches of the training data; accuracies in 0..1, entropies as shares of log(classes).

    Accuracies are None, and entropies empty, where outputs are no class scores or the data has no class labels.
    """

    rows: int
    teacher: float | None = None
    student: float | None = None
    """As it is."""
    trained: float | None = None
    """After a few steps on labels alone: a gap that stays wide is one of capacity."""
    entropy: dict[float, float] | None = None
    """Of the teacher's soft targets, by temperature."""

    @property
    def temperature(self) -> float | None:
        """The lowest at which soft targets have half of the largest entropy, or the one nearest to that."""
        if not self.entropy:
            return None
        return next((each for each, share in self.entropy.items() if share >= 0.5), max(self.entropy))

    def sentences(self) -> list[str]:
        """For the Report."""
        if self.teacher is None or self.student is None or self.trained is None or not self.entropy:
            return ["The teacher was not diagnosed: the outputs are no class scores, or the data has no class labels."]
        shares = ", ".join(f"{share:.0%} at {each:g}" for each, share in self.entropy.items())
        told = [
            f"On {self.rows} rows of training data the teacher is right in {self.teacher:.1%}, the student in "
            f"{self.student:.1%}, and in {self.trained:.1%} after {STEPS} steps on labels.",
            f"Entropy of the soft targets, by temperature: {shares}; {self.temperature:g} is suggested.",
        ]
        if self.teacher < self.student:
            told.append("The teacher is worse than the student there: imitating it may do harm.")
        return told

    def table(self) -> Table:
        """The same, to print."""
        table = Table("", "teacher", "student", f"student, {STEPS} steps later", title=f"{self.rows} training rows")
        figures = (self.teacher, self.student, self.trained)
        table.add_row("accuracy", *("-" if each is None else f"{each:.1%}" for each in figures))
        for each, share in (self.entropy or {}).items():
            mark = " (suggested)" if each == self.temperature else ""
            table.add_row(f"entropy at temperature {each:g}", f"{share:.0%}{mark}")
        return table


def diagnose(
    teacher: AnyTeacher,
    student: Program,
    data: TrainingData,
    seed: int = 0,
    progress: Stages | None = None,
) -> Diagnosis:
    """Look at a few batches with both models, and train a copy of the student on them for a few steps."""
    with generators_kept(data):
        batches = [*islice(data.batches(student), BATCHES)]
    count = sum(batch.rows for batch in batches)
    answers = [teacher(batch)[0] for batch in batches]
    rows = [*_scored(student, answers, batches)]
    if not rows:
        return Diagnosis(count)
    theirs, labels = torch.cat([each.teacher for each in rows]), torch.cat([_labels(each) for each in rows])
    trained = fit(
        student,
        TrainingData(_Again(data, len(batches))),
        lambda outputs, batch: {"labels": task_loss(outputs, batch.labels)},
        Training(steps=STEPS, optimizer="adamw", learning_rate=1e-3, schedule="constant"),
        seed=seed,
        progress=progress,
    ).program
    return Diagnosis(
        count,
        teacher=_accuracy(theirs, labels),
        student=_accuracy(torch.cat([each.student for each in rows]), labels),
        trained=_accuracy(torch.cat([each.student for each in _scored(trained, answers, batches)]), labels),
        entropy={each: _entropy(theirs / each) / math.log(theirs.shape[1]) for each in TEMPERATURES},
    )


class _Again:
    """The first batches of the data only."""

    def __init__(self, data: TrainingData, count: int) -> None:
        self._data, self._count = data, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._data.source), self._count)


def _scored(student: Program, answers: list[Any], batches: list[Batch]) -> Iterator[Prediction]:
    """Outputs that are class scores with labels."""
    student = student.fork().eval()
    for batch, answer in zip(batches, answers, strict=True):
        with torch.no_grad():
            seen = Seen(batch.inputs.call(student), answer, batch)
        for each in predictions(seen, "the diagnosis"):
            if each.classes and each.labels is not None:
                yield each


def _labels(prediction: Prediction) -> Tensor:
    assert prediction.labels is not None
    return prediction.labels


def _entropy(scores: Tensor) -> float:
    logs = scores.log_softmax(1)
    return float(-(logs.exp() * logs).sum(1).mean())


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).float().mean())
