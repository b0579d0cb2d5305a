"""How much the units of a group matter: one score a unit, over all that the unit owns in all coupled tensors.

Coupled tensors are scored together (DepGraph, arXiv:2301.12900).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from planish.compiler.coupling.groups import Coupling, Group, Member
from planish.compiler.errors import UserError
from planish.passes.pruning.units import Weights

Scores = dict[Group, Tensor]
"""float64 [width of the group], higher is more important. A group without scores stays whole."""
Gradients = Mapping[str, Tensor]
"""The gradient of the loss by the name of the learned tensor."""
OwnCriterion = Callable[[Coupling, Group], Tensor]
"""The user's own: one score for each unit of the group."""

aten = torch.ops.aten


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at beside the weights."""

    gradients: Callable[[Mapping[str, Tensor], int], Iterator[Gradients]]
    """Gradients with respect to these tensors on the data, so many rows at once. UserError where there is no data."""
    seed: int


@dataclass(frozen=True)
class Criterion:
    score: Callable[[Coupling, Evidence], Scores]
    kind: Literal["relative", "absolute", "loss"] = "relative"
    """How scores of different groups compare: after division by their group's mean, as they are, or as they are and
    with what the cut of a unit saves, because they estimate a loss."""


def _by_group(score: Callable[[Weights, Group], Tensor]) -> Callable[[Coupling, Evidence], Scores]:
    def of_all(coupling: Coupling, _: Evidence) -> Scores:
        weights = Weights.of(coupling)
        return {group: score(weights, group) for group in coupling.groups}

    of_all.__doc__ = score.__doc__
    return of_all


# ---------------------------------------------------------------------- weights


def _l1(weights: Weights, group: Group) -> Tensor:
    """Sum of absolute weights (arXiv:1608.08710)."""
    return weights.sums(group, torch.abs)


def _l2(weights: Weights, group: Group) -> Tensor:
    """Euclidean norm of the weights (arXiv:1608.03665 for structures)."""
    return _squares(weights, group).sqrt()


def _squares(weights: Weights, group: Group) -> Tensor:
    return weights.sums(group, torch.square)


def _lamp(weights: Weights, group: Group) -> Tensor:
    """Share of the squared norm that is left when the smaller units are gone (LAMP, arXiv:2010.07611)."""
    squares = _squares(weights, group)
    ordered, order = squares.sort()
    left = ordered.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = ordered / left.clamp(min=torch.finfo(torch.float64).tiny)
    return scores


def _fpgm(weights: Weights, group: Group) -> Tensor:
    """Sum of the distances to all other units: what lies near the median can be replaced (FPGM, arXiv:1811.00250)."""
    parts = [_vectors(weights.tensors[member.tensor], member, group) for member in weights.members(group)]
    vectors = torch.cat(parts, 1)
    return torch.cdist(vectors, vectors, compute_mode="use_mm_for_euclid_dist").sum(1)


def _vectors(tensor: Tensor, member: Member, group: Group) -> Tensor:
    """All weights of each unit in one tensor, float64 [width, weights]; zeros where others own more."""
    belongs = member.units >= 0
    rows = tensor.movedim(member.axis, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]
    rows, owners = rows.to("cpu", torch.float64)[belongs], member.units[belongs]
    owned = torch.bincount(owners, minlength=group.width)
    order = owners.argsort(stable=True)
    starts = owned.cumsum(0) - owned
    rank = torch.arange(len(order)) - starts[owners[order]]
    vectors = rows.new_zeros(group.width, int(owned.max()) if len(owned) else 0, rows.shape[1])
    vectors[owners[order], rank] = rows[order]
    return vectors.flatten(1)


def _batch_norm(coupling: Coupling, _: Evidence) -> Scores:
    """Absolute scales of the batch norms behind the units (Network Slimming, arXiv:1708.06519)."""
    weights = Weights.of(coupling)
    norms = coupling.program.calls(aten.batch_norm.default)
    scales = {str(getattr(norm.args[1], "target", "")) for norm in norms}
    scaled = Weights({name: tensor for name, tensor in weights.tensors.items() if name in scales})
    scores = {
        group: scaled.sums(group, torch.abs) for group in coupling.groups if any(True for _ in scaled.members(group))
    }
    if not scores:
        raise UserError("Choose another criterion than batch-norm: no batch norm scales a channel of this model.")
    return scores


def _random(coupling: Coupling, evidence: Evidence) -> Scores:
    """Chance: what every other criterion has to beat."""
    generator = torch.Generator().manual_seed(evidence.seed)
    return {group: torch.rand(group.width, dtype=torch.float64, generator=generator) for group in coupling.groups}


# ---------------------------------------------------------------------- gradients


def _taylor(coupling: Coupling, evidence: Evidence) -> Scores:
    """Squared first-order change of the loss without the unit, mean over batches (arXiv:1906.10771, equation 8).

    Weight times gradient is summed over all that the unit owns before it is squared: the unit goes as a whole.
    """
    weights = Weights.of(coupling)
    scores = {group: torch.zeros(group.width, dtype=torch.float64) for group in coupling.groups}
    batches = 0
    for gradients in evidence.gradients(weights.tensors, ROWS_AT_ONCE):
        batches += 1
        changes = {name: weights.tensors[name] * gradient for name, gradient in gradients.items()}
        for group, score in scores.items():
            score += weights.sums_of(changes, group).square()
    return {group: score / batches for group, score in scores.items()}


def _hessian(coupling: Coupling, evidence: Evidence) -> Scores:
    """Half the weights squared, times the diagonal of the Hessian: Optimal Brain Damage (LeCun et al., 1989).

    The diagonal is that of the empirical Fisher matrix, squared gradients row by row (arXiv:1801.05787).
    """
    weights = Weights.of(coupling)
    squares = {name: torch.zeros_like(tensor) for name, tensor in weights.tensors.items()}
    rows = 0
    for gradients in evidence.gradients(weights.tensors, 1):
        rows += 1
        for name, gradient in gradients.items():
            squares[name] += gradient.square()
    saliency = {name: weights.tensors[name].square() * squares[name] / (2 * rows) for name in squares}
    return {group: weights.sums_of(saliency, group) for group in coupling.groups}


ROWS_AT_ONCE = 8

CRITERIA: Mapping[str, Criterion] = {
    "l1": Criterion(_by_group(_l1)),
    "l2": Criterion(_by_group(_l2)),
    "lamp": Criterion(_by_group(_lamp), "absolute"),
    "fpgm": Criterion(_by_group(_fpgm)),
    "batch-norm": Criterion(_batch_norm),
    "taylor": Criterion(_taylor, "loss"),
    "hessian": Criterion(_hessian, "loss"),
    "random": Criterion(_random),
}


def own(criterion: OwnCriterion) -> Criterion:
    """The user's function as a Criterion; UserError if it does not return one finite score for each unit."""

    def score(coupling: Coupling, _: Evidence) -> Scores:
        return {group: _checked(criterion(coupling, group), group) for group in coupling.groups}

    return Criterion(score)


def _checked(scores: object, group: Group) -> Tensor:
    told = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or scores.shape != (group.width,):
        raise UserError(f"Return a tensor [{group.width}] from the criterion for {group.name}, not {told}.")
    if not scores.isfinite().all():
        raise UserError(f"Return finite scores from the criterion: those of {group.name} are not.")
    return scores.detach().to("cpu", torch.float64)
