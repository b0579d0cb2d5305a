"""Feature losses against plain float64 Python, their gradients, and what they are blind to."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations, product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from planish.passes.distill import features

Row = list[float]


def rows_of(feature: Tensor) -> list[Row]:
    return feature.flatten(1).tolist()


def dot(one: Row, other: Row) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def norm(row: Row) -> float:
    return math.sqrt(dot(row, row))


def minus(one: Row, other: Row) -> Row:
    return [a - b for a, b in zip(one, other, strict=True)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def distances(student: Tensor, teacher: Tensor) -> float:
    found = []
    for rows in (rows_of(student), rows_of(teacher)):
        pairs = [norm(minus(a, b)) for a, b in combinations(rows, 2)]
        found.append([value / mean(pairs) for value in pairs])
    return mean([huber(a - b) for a, b in zip(*found, strict=True)])


def angles(student: Tensor, teacher: Tensor) -> float:
    found = []
    for rows in (rows_of(student), rows_of(teacher)):
        values = []
        for i, j, k in product(range(len(rows)), repeat=3):
            if i in (j, k):
                values.append(0.0)
                continue
            a, b = minus(rows[j], rows[i]), minus(rows[k], rows[i])
            values.append(dot(a, b) / norm(a) / norm(b))
        found.append(values)
    return mean([huber(a - b) for a, b in zip(*found, strict=True)])


def similarity(student: Tensor, teacher: Tensor) -> float:
    total, grams = 0.0, []
    for rows in (rows_of(student), rows_of(teacher)):
        products = [[dot(a, b) for b in rows] for a in rows]
        grams.append([[value / norm(row) for value in row] for row in products])
    for one, other in zip(*grams, strict=True):
        total += sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
    return total / len(grams[0]) ** 2


def attention_transfer(student: Tensor, teacher: Tensor) -> float:
    total = []
    for one, other in zip(student, teacher, strict=True):
        maps = []
        for image in (one, other):
            flat = [
                sum(float(channel[y, x]) ** 2 for channel in image) for y, x in product(*map(range, image.shape[1:]))
            ]
            maps.append([value / norm(flat) for value in flat])
        total.append(sum((a - b) ** 2 for a, b in zip(*maps, strict=True)))
    return mean(total)


def contrastive(student: Tensor, teacher: Tensor) -> float:
    total = []
    for place, row in enumerate(rows_of(student)):
        scores = [dot(row, other) / norm(row) / norm(other) / 0.2 for other in rows_of(teacher)]
        total.append(math.log(sum(math.exp(score) for score in scores)) - scores[place])
    return mean(total)


def cosine(student: Tensor, teacher: Tensor) -> float:
    flat = [each.movedim(1, -1).flatten(0, -2).tolist() for each in (student, teacher)]
    return mean([1 - dot(a, b) / norm(a) / norm(b) for a, b in zip(*flat, strict=True)])


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., float]]] = {
    "squared": (
        features.squared,
        lambda s, t: mean([(a - b) ** 2 for a, b in zip(s.flatten(), t.flatten(), strict=True)]),
    ),
    "cosine": (features.cosine, cosine),
    "attention transfer": (features.attention_transfer, attention_transfer),
    "similarity": (features.similarity, similarity),
    "distances": (features.distances, distances),
    "angles": (features.angles, angles),
    "contrastive": (partial(features.contrastive, temperature=0.2), contrastive),
}
formulas = pytest.mark.parametrize(("formula", "by_hand"), CASES.values(), ids=CASES)


def images(channels: int = 3) -> Tensor:
    return torch.randn(4, channels, 2, 3, dtype=torch.float64)


@formulas
def test_the_formula_is_that_of_the_paper(formula: Callable[..., Tensor], by_hand: Callable[..., float]) -> None:
    student, teacher = images(), images()
    assert formula(student, teacher).item() == pytest.approx(float(by_hand(student, teacher)), rel=1e-9)


@formulas
def test_the_gradient_is_that_of_the_value(formula: Callable[..., Tensor], by_hand: Callable[..., float]) -> None:
    teacher = images()
    assert torch.autograd.gradcheck(lambda student: formula(student, teacher), images().requires_grad_())


@pytest.mark.parametrize("name", [name for name in CASES if name != "contrastive"])
def test_equal_features_have_no_loss(name: str) -> None:
    feature = images()
    assert CASES[name][0](feature, feature.clone()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["attention transfer", "similarity", "distances", "angles"])
def test_relations_are_compared_between_any_widths(name: str) -> None:
    assert CASES[name][0](images(3), images(7)).isfinite()


@pytest.mark.parametrize("name", ["similarity", "distances", "angles"])
def test_relations_do_not_see_a_rotation_and_a_scale(name: str) -> None:
    rows = torch.randn(5, 6, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert CASES[name][0](3 * rows @ rotation, rows).item() == pytest.approx(0, abs=1e-12)


def test_rows_that_are_equal_lead_to_no_nan() -> None:
    rows = torch.ones(4, 3, requires_grad=True)
    for formula in (features.distances, features.angles, features.similarity):
        (gradient,) = torch.autograd.grad(formula(rows, torch.randn(4, 3)), rows)
        assert gradient.isfinite().all()


def test_attention_maps_are_compared_by_their_divergence_and_masked_keys_do_not_count() -> None:
    scores = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    scores[..., 3] = -torch.inf
    student, teacher = scores.log_softmax(-1)
    expected = (teacher.exp() * (teacher - student))[..., :3].sum(-1).mean()
    torch.testing.assert_close(features.attention_maps(student, teacher), expected)


def test_relations_between_values_join_heads_that_differ_in_number() -> None:
    one, other = torch.randn(2, 4, 5, 3), torch.randn(2, 6, 5, 2)
    joined = [each.transpose(1, 2).flatten(2) for each in (one, other)]
    logs = [F.log_softmax(each @ each.transpose(1, 2) / 12**0.5, -1) for each in joined]
    expected = (logs[1].exp() * (logs[1] - logs[0])).sum(-1).mean()
    torch.testing.assert_close(features.value_relations(one, other), expected)
