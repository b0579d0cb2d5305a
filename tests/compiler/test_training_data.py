from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import planish
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.training_data import TrainingData
from tests.compiler.models import Several

X, Y = torch.randn(6, 4), torch.arange(6)


def program() -> Program:
    return planish.trace(nn.Linear(4, 3), X)


class Named(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor | None = None) -> Tensor:
        return ids * mask


@pytest.mark.parametrize(
    ("item", "labels"),
    [
        ((X, Y), Y),
        ([X, Y], Y),
        ((X, Y, X), (Y, X)),
        (X, None),
        ((X,), None),
        ({"input": X, "label": Y}, Y),
        ({"input": X, "a": Y, "b": X}, {"a": Y, "b": X}),
        ((X, {"boxes": X, "classes": Y}), {"boxes": X, "classes": Y}),
        ((X, np.arange(6)), Y),
    ],
)
def test_inputs_and_labels_are_told_apart(item: Any, labels: Any) -> None:
    (batch,) = TrainingData([item]).batches(program())
    assert batch.rows == 6 and torch.equal(batch.inputs.args[0], X)
    found, expected = (torch.utils._pytree.tree_flatten(each) for each in (batch.labels, labels))
    assert found[1] == expected[1]
    for one, other in zip(found[0], expected[0], strict=True):
        assert one is other is None or torch.equal(one, other)


def test_named_inputs_come_in_the_order_of_the_program_and_the_rest_are_labels() -> None:
    traced = planish.trace(Named(), {"ids": X, "mask": X.clone()})
    (batch,) = TrainingData([{"labels": Y, "mask": X * 2, "ids": X}]).batches(traced)
    assert list(batch.inputs.kwargs) == ["ids", "mask"] and torch.equal(batch.labels, Y)
    torch.testing.assert_close(batch.inputs.call(traced), X * X * 2)


def test_named_inputs_fit_a_program_traced_with_positional_ones() -> None:
    traced = planish.trace(Named(), (X, X.clone()))
    (batch,) = TrainingData([{"mask": X * 2, "ids": X, "labels": Y}]).batches(traced)
    torch.testing.assert_close(batch.inputs.call(traced), X * X * 2)


def test_nested_inputs_stay_nested() -> None:
    traced = planish.trace(Several(), Inputs(((X, X),)))
    (batch,) = TrainingData([((X, X), Y)]).batches(traced)
    assert torch.equal(batch.labels, Y) and batch.inputs.call(traced)["total"].shape == (6, 3)


def test_the_parts_of_a_batch_are_the_batch() -> None:
    (batch,) = TrainingData([(X[:5], {"a": Y[:5], "scale": torch.ones(3)})]).batches(program())
    parts = [batch.part(index, 3) for index in range(3)]
    assert [part.rows for part in parts] == [1, 2, 2]
    assert torch.equal(torch.cat([part.inputs.args[0] for part in parts]), X[:5])
    assert torch.equal(torch.cat([part.labels["a"] for part in parts]), Y[:5])
    assert all(torch.equal(part.labels["scale"], torch.ones(3)) for part in parts)


def generator() -> Iterator[tuple[Tensor, Tensor]]:
    yield X, Y


class Raising:
    def __iter__(self) -> Iterator[Any]:
        yield X, Y
        raise OSError("disk full")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (generator(), "a generator is exhausted after one"),
        (X, r"Pass an iterable of \(inputs, labels\) batches .* not Tensor"),
        (3, "not int"),
        ([], "at least one batch"),
        ([(torch.zeros(2, 5), Y)], r"Give input 'input_1' of training batch 0 as torch.float32 \[batch, 4\]"),
        ([(X.double(), Y)], "it is torch.float64"),
        ([{"wrong": X}], "wrong"),
        (Raising(), "reading batch 1 raised OSError: disk full"),
    ],
)
def test_data_that_cannot_be_trained_on_is_told(source: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        [*TrainingData(source).batches(program())]
