from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from planish.compiler.errors import UserError
from planish.passes.training.labels import task_loss


def classes_by_hand(logits: Tensor, labels: Tensor, ignored: int = -100) -> float:
    """Mean of -log softmax over the rows that count; classes last."""
    total, count = 0.0, 0
    for row, label in zip(logits.double().flatten(0, -2).tolist(), labels.flatten().tolist(), strict=True):
        if label != ignored:
            highest = max(row)
            total += highest + math.log(sum(math.exp(value - highest) for value in row)) - row[label]
            count += 1
    return total / count


@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 3))
def test_classes_of_rows_are_cross_entropy(rows: int, classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits, labels = torch.randn(rows, classes), torch.randint(0, classes, (rows,))
    assert task_loss(logits, labels).item() == pytest.approx(classes_by_hand(logits, labels), rel=1e-5)


def test_classes_of_tokens_are_last_and_padding_is_ignored() -> None:
    logits, labels = torch.randn(3, 7, 7), torch.randint(0, 7, (3, 7))  # as many tokens as classes
    labels[:, 5:] = -100
    assert task_loss(logits, labels).item() == pytest.approx(classes_by_hand(logits, labels), rel=1e-5)


def test_classes_of_pixels_are_second() -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    expected = classes_by_hand(logits.movedim(1, -1), labels)
    assert task_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_real_labels_are_targets_and_whole_ones_of_the_same_shape_are_logits_of_yes_or_no() -> None:
    outputs, targets, flags = torch.randn(4, 3), torch.randn(4, 3), torch.randint(0, 2, (4, 3))
    assert task_loss(outputs, targets).item() == pytest.approx(((outputs - targets) ** 2).mean().item(), rel=1e-5)
    likelihood = torch.where(flags == 1, outputs.sigmoid(), 1 - outputs.sigmoid())
    assert task_loss(outputs, flags).item() == pytest.approx(-likelihood.log().mean().item(), rel=1e-4)
    single = torch.randn(4, 1)
    assert torch.equal(task_loss(single, flags[:, 0]), task_loss(single[:, 0], flags[:, 0]))


def test_several_outputs_are_matched_by_order_or_name_and_their_losses_add() -> None:
    boxes, scores = torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    where, what = torch.randn(2, 5, 4), torch.randint(0, 3, (2, 5))
    expected = task_loss(boxes, where) + task_loss(scores, what)
    torch.testing.assert_close(task_loss((boxes, scores), (where, what)), expected)
    torch.testing.assert_close(task_loss({"s": scores, "b": boxes}, {"b": where, "s": what}), expected)


def test_a_single_label_belongs_to_the_logits() -> None:
    outputs = {"hidden": torch.randn(4, 9), "logits": torch.randn(4, 3)}
    labels = torch.tensor([0, 1, 2, 0])
    assert torch.equal(task_loss(outputs, labels), task_loss(outputs["logits"], labels))


@pytest.mark.parametrize(
    ("outputs", "labels", "sentence"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "Give labels from 0 to 2, as the model has 3 outputs: there is a 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "there is a -1"),
        (torch.zeros(2, 3), torch.zeros(2, 4), r"got float32 \[2, 4\] for an output of float32 \[2, 3\]"),
        (torch.zeros(2, 3), None, "it yields inputs alone"),
        (torch.zeros(2, 3), (torch.zeros(2), torch.zeros(2)), "one for each of the 1 outputs, .* yields a tuple of 2"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2), "Train a model that returns real numbers"),
    ],
)
def test_labels_that_do_not_fit_are_told_with_both_shapes(outputs: Any, labels: Any, sentence: str) -> None:
    if isinstance(outputs, Tensor) and not outputs.is_floating_point():
        outputs = [outputs]
    with pytest.raises(UserError, match=sentence):
        task_loss(outputs, labels)
