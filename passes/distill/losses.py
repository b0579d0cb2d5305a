"""The losses of ``Distill``: each one a frozen dataclass of plain options, which names its formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from planish.compiler.errors import UserError, closest
from planish.compiler.program import Program
from planish.passes.distill import logits
from planish.passes.distill.outputs import Prediction, Seen, predictions
from planish.passes.training.labels import IGNORED, real_tensors, task_loss


@dataclass(frozen=True)
class Bound:
    """A loss that knows the two models it compares."""

    value: Callable[[Seen], Tensor]
    student: tuple[str, ...] = ()
    """Nodes whose results it wants, of each model; feature by feature."""
    teacher: tuple[str, ...] = ()
    projected: tuple[int, ...] = ()
    """Which of them need the teacher's shape: the student's get a learned projector where theirs is another."""


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """One term of the objective. ``weight``: what it is multiplied by."""

    weight: float = 1.0

    @property
    def needs_teacher(self) -> bool:
        return True

    @property
    def reads_labels(self) -> bool:
        """Whether it means nothing without the labels of the data."""
        return False

    def __post_init__(self) -> None:
        self.demand("weight", self.weight >= 0, "at least 0")

    def demand(self, name: str, fits: bool, what: str) -> None:
        if not fits:
            raise UserError(f"Give {type(self).__name__}({name}=…) {what}, not {getattr(self, name)!r}.")

    @abstractmethod
    def bind(self, student: Program, teacher: Program | None) -> Bound:
        """The loss for two models; ``teacher`` is None where it cannot be looked into."""


class OutputLoss(Loss):
    """A loss on what the models return."""

    def bind(self, student: Program, teacher: Program | None) -> Bound:
        return Bound(self.value)

    @abstractmethod
    def value(self, seen: Seen) -> Tensor:
        """The loss of one batch, before its weight."""


@dataclass(frozen=True, kw_only=True)
class HardLabels(OutputLoss):
    """The labels of the data, whatever the outputs are (``passes/training/labels.py``).

    ``source="teacher"``: what the teacher finds likeliest instead (word-level, arXiv:1606.07947, section 3.1).
    ``ignored``: label of what is not to be learnt.
    """

    source: str = "data"
    ignored: int = IGNORED

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand("source", self.source in ("data", "teacher"), "'data' or 'teacher'")

    @property
    def needs_teacher(self) -> bool:
        return self.source == "teacher"

    @property
    def reads_labels(self) -> bool:
        return self.source == "data"

    def value(self, seen: Seen) -> Tensor:
        if self.source == "data":
            return task_loss(seen.student, seen.batch.labels, self.ignored)
        return _sum(
            F.cross_entropy(each.student, each.teacher.argmax(1)) for each in _classes(seen, self, None, self.ignored)
        )


@dataclass(frozen=True, kw_only=True)
class SoftTargets(OutputLoss):
    """The teacher's probabilities at a temperature, T^2 scaled (arXiv:1503.02531).

    Outputs that are no class scores are taken as they are (mean squared error).
    ``reverse``: KL(student || teacher) instead, for language models (arXiv:2306.08543).
    ``top_k``: only so many of the teacher's classes are told apart; the rest share what is left.
    ``mask``: name of the input that is 0 where tokens do not count. ``ignored``: label that does not.
    """

    temperature: float = 4.0
    reverse: bool = False
    top_k: int | None = None
    mask: str | None = None
    ignored: int = IGNORED

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand("temperature", self.temperature > 0, "a number above 0")
        self.demand("top_k", self.top_k is None or self.top_k >= 1, "at least 1")

    def value(self, seen: Seen) -> Tensor:
        formula = logits.reverse_kl if self.reverse else logits.soft_targets
        losses = []
        for each in predictions(seen, "SoftTargets", self.mask, self.ignored):
            if each.classes:
                teacher = logits.top_k(each.teacher, self.top_k) if self.top_k else each.teacher
                losses.append(formula(each.student, teacher, self.temperature))
            else:
                losses.append(F.mse_loss(each.student, each.teacher))
        return _sum(losses, like=seen)


@dataclass(frozen=True, kw_only=True)
class Values(OutputLoss):
    """The teacher's outputs as they are: mean squared error, for regression and embeddings."""

    def value(self, seen: Seen) -> Tensor:
        losses = []
        for each in predictions(seen, "Values"):
            losses.append(F.mse_loss(each.student, each.teacher))
        return _sum(losses, like=seen)


@dataclass(frozen=True, kw_only=True)
class Decoupled(OutputLoss):
    """Decoupled knowledge distillation (arXiv:2203.08679): ``target`` and ``others`` weigh its two parts."""

    temperature: float = 4.0
    target: float = 1.0
    others: float = 8.0
    ignored: int = IGNORED

    @property
    def reads_labels(self) -> bool:
        return True

    def value(self, seen: Seen) -> Tensor:
        losses = []
        for each in _classes(seen, self, None, self.ignored):
            if each.labels is None:
                raise UserError("Yield class labels from train: Decoupled tells the label's class from the others.")
            losses.append(
                logits.decoupled(each.student, each.teacher, each.labels, self.temperature, self.target, self.others)
            )
        return _sum(losses, like=seen)


@dataclass(frozen=True, kw_only=True)
class Dist(OutputLoss):
    """DIST, correlations instead of values (arXiv:2205.10536): ``between`` classes, and ``within`` a class."""

    temperature: float = 4.0
    between: float = 1.0
    within: float = 1.0
    ignored: int = IGNORED

    def value(self, seen: Seen) -> Tensor:
        return _sum(
            (
                logits.dist(each.student, each.teacher, self.temperature, self.between, self.within)
                for each in _classes(seen, self, None, self.ignored)
            ),
            like=seen,
        )


@dataclass(frozen=True, kw_only=True)
class Ranking(OutputLoss):
    """The teacher's order of the items in each row of scores ``[queries, items]``.

    ``how``: ``listwise`` (ListNet), ``pairwise`` (RankNet), ``margin`` (arXiv:2010.02666), or ``pointwise``: squared
    errors of the scores, which know no order. ``in_batch``: the outputs
    are two embeddings (two towers), of queries and of items, and every item of the batch is scored for every query.
    """

    how: str = "listwise"
    temperature: float = 1.0
    in_batch: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = ("listwise", "pairwise", "margin", "pointwise")
        if self.how not in choices:
            raise UserError(f"Ranking(how=…) does not know {self.how!r}{closest(self.how, choices)}")

    def value(self, seen: Seen) -> Tensor:
        student, teacher = (self._scores(outputs) for outputs in (seen.student, seen.teacher))
        if student.shape != teacher.shape:
            raise UserError(
                f"Give a teacher that scores the same items: Ranking got {list(student.shape)} of the student and "
                f"{list(teacher.shape)} of the teacher."
            )
        if self.how == "listwise":
            return logits.listwise(student, teacher, self.temperature)
        if self.how == "pointwise":
            return F.mse_loss(student, teacher)
        return logits.pairwise(student, teacher) if self.how == "pairwise" else logits.margin(student, teacher)

    def _scores(self, outputs: object) -> Tensor:
        tensors = real_tensors(outputs)
        if self.in_batch:
            if len(tensors) < 2:
                raise UserError("Return two embeddings, of queries and of items, for Ranking(in_batch=True).")
            return tensors[0] @ tensors[1].T
        if tensors[0].ndim != 2:
            raise UserError(f"Return scores [queries, items] for Ranking, not {list(tensors[0].shape)}.")
        return tensors[0]


@dataclass(frozen=True, kw_only=True)
class Exits(OutputLoss):
    """Self-distillation from the deepest exit (arXiv:1905.08094): all outputs but the last imitate the last one."""

    temperature: float = 4.0

    @property
    def needs_teacher(self) -> bool:
        return False

    def value(self, seen: Seen) -> Tensor:
        *early, last = real_tensors(seen.student)
        if not early:
            raise UserError("Return several outputs, the deepest last, for Exits: the model returns one.")
        return _sum(logits.soft_targets(exit, last.detach(), self.temperature) for exit in early)


def _classes(seen: Seen, loss: Loss, mask: str | None, ignored: int) -> Iterator[Prediction]:
    """The outputs that are class scores. Raises UserError if none is."""
    name = type(loss).__name__
    found = [each for each in predictions(seen, name, mask, ignored) if each.classes]
    if not found:
        raise UserError(f"Use another loss than {name} for this model: none of its outputs is a row of class scores.")
    yield from found


def _sum(losses: Iterator[Tensor] | list[Tensor], like: Seen | None = None) -> Tensor:
    """0, with a gradient, where every row was left out."""
    found = [*losses]
    if not found:
        assert like is not None
        return torch.stack([each.sum() for each in real_tensors(like.student)]).sum() * 0.0
    return torch.stack(found).sum() if len(found) > 1 else found[0]
