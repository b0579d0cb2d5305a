"""The losses of ``Distill`` on what happens inside: features by name, and the layers of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planish.compiler.errors import UserError, closest
from planish.compiler.program import Program
from planish.passes.distill import features
from planish.passes.distill.losses import (
    Bound,
    Decoupled,
    Dist,
    Exits,
    HardLabels,
    Loss,
    Ranking,
    SoftTargets,
    Values,
)
from planish.passes.distill.outputs import Seen
from planish.passes.distill.taps import Attention, attentions, find
from planish.passes.training.labels import describe

Formula = Callable[[Tensor, Tensor], Tensor]
FORMULAS: dict[str, Formula] = {
    "squared": features.squared,
    "cosine": features.cosine,
    "attention-transfer": features.attention_transfer,
    "similarity": features.similarity,
    "distances": features.distances,
    "angles": features.angles,
}
PROJECTED = ("squared", "cosine", "contrastive")
"""Compare value by value: other widths need a projector. The others compare relations, which have no width."""


@dataclass(frozen=True, kw_only=True)
class Features(Loss):
    """Results of nodes or modules, by name: ``pairs=(("layer2", "layer4"), …)`` of student and teacher.

    ``how``: ``squared`` (arXiv:1412.6550), ``cosine`` (arXiv:1910.01108), ``attention-transfer`` (arXiv:1612.03928),
    ``similarity`` (arXiv:1907.09682), ``distances`` and ``angles`` (arXiv:1904.05068), ``contrastive``
    (arXiv:1910.10699, negatives from the batch). The first two and the last learn a projector from the student's shape
    to the teacher's where they differ; it is not part of the student. ``temperature`` is that of ``contrastive``.
    """

    pairs: tuple[tuple[str, str] | str, ...] = ()
    how: str = "squared"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pairs", tuple((p, p) if isinstance(p, str) else tuple(p) for p in self.pairs))
        self.demand("pairs", bool(self.pairs) and all(len(pair) == 2 for pair in self.pairs), "pairs of names")
        if self.how not in (*FORMULAS, "contrastive"):
            raise UserError(
                f"Features(how=…) does not know {self.how!r}{closest(self.how, (*FORMULAS, 'contrastive'))}"
            )

    def bind(self, student: Program, teacher: Program | None) -> Bound:
        teacher = _looked_into(teacher, self)
        ours = tuple(find(student, pair[0], "student") for pair in self.pairs)
        theirs = tuple(find(teacher, pair[1], "teacher") for pair in self.pairs)
        return Bound(self._value, ours, theirs, tuple(range(len(ours))) if self.how in PROJECTED else ())

    def _value(self, seen: Seen) -> Tensor:
        found = zip(seen.student_features, seen.teacher_features, strict=True)
        return torch.stack([self._loss(student, teacher) for student, teacher in found]).mean()

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.how == "contrastive":
            return features.contrastive(student, teacher, self.temperature)
        if self.how == "attention-transfer" and not _maps_fit(student, teacher):
            raise UserError(
                f"Name features with as many pixels or tokens for attention-transfer: {describe(student)} of the "
                f"student has not as many as {describe(teacher)} of the teacher."
            )
        return FORMULAS[self.how](student, teacher)


def _maps_fit(student: Tensor, teacher: Tensor) -> bool:
    """Whether both have one map, of the same size, for each row."""
    if student.ndim != teacher.ndim or student.ndim < 3:
        return False
    return student.shape[1] == teacher.shape[1] if student.ndim == 3 else student.shape[2:] == teacher.shape[2:]


@dataclass(frozen=True, kw_only=True)
class Layers(Loss):
    """Layers of a transformer against those of a deeper, wider one (arXiv:1909.10351, 2002.10957).

    ``layer_map``: ``uniform`` (the last of every so many), ``last`` (the teacher's last ones), or pairs of numbers of
    student and teacher, from 0. ``hidden``, ``attention``, ``values``: weights of the squared error of what the
    layers hand on (projected), and of the divergences of attention maps and of relations between values.
    """

    layer_map: str | tuple[tuple[int, int], ...] = "uniform"
    hidden: float = 1.0
    attention: float = 1.0
    values: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layer_map, str):
            self.demand("layer_map", self.layer_map in ("uniform", "last"), "'uniform', 'last' or pairs of numbers")
        else:
            object.__setattr__(self, "layer_map", tuple((int(ours), int(theirs)) for ours, theirs in self.layer_map))

    def bind(self, student: Program, teacher: Program | None) -> Bound:
        teacher = _looked_into(teacher, self)
        ours, theirs = attentions(student, "student"), attentions(teacher, "teacher")
        pairs = [(ours[one], theirs[other]) for one, other in self._map(len(ours), len(theirs))]
        points: list[list[str]] = [[], []]
        projected = []
        for pair in pairs:
            for names, whose, program, layer in zip(
                points, ("student", "teacher"), (student, teacher), pair, strict=True
            ):
                if self.hidden:
                    names.append(find(program, _layer(layer, whose), whose))
                names += [layer.query, layer.key, layer.value, layer.mask or layer.query]
            if self.hidden:
                projected.append(len(points[0]) - 5)
        return Bound(lambda seen: self._value(seen, pairs), tuple(points[0]), tuple(points[1]), tuple(projected))

    def _map(self, ours: int, theirs: int) -> tuple[tuple[int, int], ...]:
        if self.layer_map == "uniform":
            return tuple((layer, round((layer + 1) * theirs / ours) - 1) for layer in range(ours))
        if self.layer_map == "last":
            return tuple((layer, theirs - ours + layer) for layer in range(max(0, ours - theirs), ours))
        assert not isinstance(self.layer_map, str)
        for one, other in self.layer_map:
            if not (0 <= one < ours and 0 <= other < theirs):
                raise UserError(
                    f"Map layers that exist: {one} of the student to {other} of the teacher was asked for, they have "
                    f"{ours} and {theirs}, counted from 0."
                )
        return self.layer_map

    def _value(self, seen: Seen, pairs: Sequence[tuple[Attention, Attention]]) -> Tensor:
        losses = []
        ours, theirs = iter(seen.student_features), iter(seen.teacher_features)
        for student, teacher in pairs:
            total = seen.student_features[0].new_zeros(())
            if self.hidden:
                total = total + self.hidden * features.squared(next(ours), next(theirs))
            maps, values = zip(*(_map_and_values(*each) for each in ((student, ours), (teacher, theirs))), strict=True)
            if self.attention:
                total = total + self.attention * features.attention_maps(*maps)
            if self.values:
                total = total + self.values * features.value_relations(*values)
            losses.append(total)
        return torch.stack(losses).mean()


def _map_and_values(attention: Attention, found: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    query, key, value, mask = (next(found) for _ in range(4))
    return attention.log_map(query, key, mask if attention.mask else None), value


def _layer(attention: Attention, whose: str) -> str:
    if not attention.layer:
        raise UserError(
            f"Give Layers(hidden=0), and name what layers hand on in Features(pairs=…): the attentions of the {whose} "
            f"do not lie in numbered modules."
        )
    return attention.layer


def _looked_into(teacher: Program | None, loss: Loss) -> Program:
    if teacher is None:
        raise UserError(
            f"Use a teacher that can be looked into (an nn.Module, an ExportedProgram, a Program) for "
            f"{type(loss).__name__}: of an artifact or a function only the outputs are known."
        )
    return teacher


AnyLoss = HardLabels | SoftTargets | Values | Decoupled | Dist | Ranking | Exits | Features | Layers
"""All losses by their kinds, as saved plans name them."""
