"""Every formula against plain float64 Python that was written from the papers, and its gradient against differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from planish.passes.distill import logits

Rows = list[list[float]]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    highest = max(row)
    powers = [math.exp((value - highest) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(one: list[float], other: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(one, other, strict=True))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def soft_targets(student: Rows, teacher: Rows, temperature: float) -> float:
    pairs = zip(student, teacher, strict=True)
    return temperature**2 * mean([kl(softmax(t, temperature), softmax(s, temperature)) for s, t in pairs])


def reverse_kl(student: Rows, teacher: Rows, temperature: float) -> float:
    pairs = zip(student, teacher, strict=True)
    return temperature**2 * mean([kl(softmax(s, temperature), softmax(t, temperature)) for s, t in pairs])


def decoupled(student: Rows, teacher: Rows, labels: list[int], temperature: float, a: float, b: float) -> float:
    total = []
    for s, t, label in zip(student, teacher, labels, strict=True):
        ps, pt = softmax(s, temperature), softmax(t, temperature)
        target = kl([pt[label], 1 - pt[label]], [ps[label], 1 - ps[label]])
        others = [
            [p / (1 - probabilities[label]) for place, p in enumerate(probabilities) if place != label]
            for probabilities in (pt, ps)
        ]
        total.append(a * target + b * kl(*others))
    return temperature**2 * mean(total)


def pearson(one: list[float], other: list[float]) -> float:
    a, b = [v - mean(one) for v in one], [v - mean(other) for v in other]
    norms = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms


def dist(student: Rows, teacher: Rows, temperature: float, between: float, within: float) -> float:
    s, t = ([softmax(row, temperature) for row in rows] for rows in (student, teacher))
    rows = mean([1 - pearson(a, b) for a, b in zip(s, t, strict=True)])
    columns = mean([1 - pearson([*a], [*b]) for a, b in zip(zip(*s, strict=True), zip(*t, strict=True), strict=True)])
    return temperature**2 * (between * rows + within * columns)


def pairwise(student: Rows, teacher: Rows) -> float:
    total = []
    for s, t in zip(student, teacher, strict=True):
        for i in range(len(s)):
            for j in range(i + 1, len(s)):
                p, q = (1 / (1 + math.exp(-(row[i] - row[j]))) for row in (t, s))
                total.append(-p * math.log(q) - (1 - p) * math.log(1 - q))
    return mean(total)


def margin(student: Rows, teacher: Rows) -> float:
    return mean(
        [
            ((s[i] - s[j]) - (t[i] - t[j])) ** 2
            for s, t in zip(student, teacher, strict=True)
            for i in range(len(s))
            for j in range(i + 1, len(s))
        ]
    )


LABELS = torch.tensor([1, 0, 2, 1])
CASES: list[tuple[str, Callable[..., Tensor], Callable[..., float]]] = [
    ("soft targets", partial(logits.soft_targets, temperature=3.0), partial(soft_targets, temperature=3.0)),
    ("reverse", partial(logits.reverse_kl, temperature=2.0), partial(reverse_kl, temperature=2.0)),
    (
        "decoupled",
        partial(logits.decoupled, labels=LABELS, temperature=4.0, target=1.0, others=8.0),
        partial(decoupled, labels=LABELS.tolist(), temperature=4.0, a=1.0, b=8.0),
    ),
    (
        "dist",
        partial(logits.dist, temperature=2.0, between=1.5, within=0.5),
        partial(dist, temperature=2.0, between=1.5, within=0.5),
    ),
    ("pairwise", logits.pairwise, pairwise),
    ("margin", logits.margin, margin),
    (
        "listwise",
        partial(logits.listwise, temperature=2.0),
        lambda s, t: mean([kl(softmax(b, 2.0), softmax(a, 2.0)) for a, b in zip(s, t, strict=True)]),
    ),
]
formulas = pytest.mark.parametrize(
    ("formula", "by_hand"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)


@formulas
@given(seed=st.integers(0, 50))
def test_the_formula_is_that_of_the_paper(
    formula: Callable[..., Tensor], by_hand: Callable[..., float], seed: int
) -> None:
    torch.manual_seed(seed)
    student, teacher = 3 * torch.randn(4, 3, dtype=torch.float64), 3 * torch.randn(4, 3, dtype=torch.float64)
    assert formula(student, teacher).item() == pytest.approx(by_hand(student.tolist(), teacher.tolist()), rel=1e-9)


@formulas
def test_the_gradient_is_that_of_the_value(formula: Callable[..., Tensor], by_hand: Callable[..., float]) -> None:
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda scores: formula(scores, teacher), student)


@formulas
def test_a_student_like_its_teacher_has_nothing_to_learn(
    formula: Callable[..., Tensor], by_hand: Callable[..., float]
) -> None:
    teacher = torch.randn(4, 3, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    value = formula(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    if formula is not logits.pairwise:  # a cross entropy: at its least, not 0
        assert value.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-9


def test_the_gradient_of_soft_targets_keeps_its_size_as_the_temperature_rises() -> None:
    student = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(8, 5, dtype=torch.float64)
    norms = []
    for temperature in (20.0, 40.0, 80.0):
        (gradient,) = torch.autograd.grad(logits.soft_targets(student, teacher, temperature), student)
        norms.append(gradient.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.05) and norms[2] == pytest.approx(norms[1], rel=0.03)


def test_soft_targets_are_both_parts_of_the_decoupled_loss() -> None:
    """Equation 7 of arXiv:2203.08679: KD = TCKD + (1 - p_t) NCKD."""
    student, teacher = torch.randn(2, 1, 6, dtype=torch.float64)
    label = torch.tensor([4])
    rest = 1 - (teacher / 2).softmax(1)[0, 4].item()
    whole = logits.decoupled(student, teacher, label, 2.0, 1.0, rest)
    torch.testing.assert_close(whole, logits.soft_targets(student, teacher, 2.0))


@given(st.integers(1, 12), st.integers(0, 20))
def test_the_top_classes_keep_their_probabilities_and_the_rest_shares_what_is_left(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    scores = 2 * torch.randn(3, 9, dtype=torch.float64)
    probabilities, kept = scores.softmax(1), logits.top_k(scores, count).exp()
    torch.testing.assert_close(kept.sum(1), torch.ones(3, dtype=torch.float64))
    top = probabilities.topk(min(count, 9), 1).indices
    torch.testing.assert_close(kept.gather(1, top), probabilities.gather(1, top))
    rest = kept.masked_fill(torch.zeros_like(kept).scatter(1, top, 1).bool(), torch.nan)
    spreads = [row[~row.isnan()] for row in rest]
    assert all(row.numel() == 0 or (row - row[0]).abs().max() < 1e-12 for row in spreads)
