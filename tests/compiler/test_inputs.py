from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs, check_tensors

x = torch.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    ("value", "args", "kwargs"),
    [
        (x, 1, 0),
        ((x, x), 2, 0),
        ([x], 1, 0),
        ({"a": x, "b": x}, 0, 2),
        (Inputs((x,), {"a": x}), 1, 1),
        ((), 0, 0),
    ],
)
def test_a_tensor_is_one_argument_a_tuple_the_positional_ones_a_dict_the_keywords(
    value: Any, args: int, kwargs: int
) -> None:
    made = Inputs.of(value)
    assert (len(made.args), len(made.kwargs)) == (args, kwargs) and len(made.leaves()) == args + kwargs


def test_inputs_call_a_model_as_its_user_does() -> None:
    assert Inputs((1,), {"b": 2}).call(lambda a, b: (a, b)) == (1, 2)


def test_map_changes_every_leaf_and_keeps_the_structure() -> None:
    made = Inputs(((x, [x]),), {"a": {"b": x}}).map(lambda leaf: leaf + 1)
    assert all(torch.equal(leaf, x + 1) for leaf in made.leaves())
    assert isinstance(made.args[0], tuple) and isinstance(made.args[0][1], list) and set(made.kwargs["a"]) == {"b"}


@pytest.mark.parametrize(
    ("value", "size"), [(x, 3), ((torch.tensor(1.0), x), 3), (torch.tensor(1.0), 1), ((), 1), ((2, x), 3)]
)
def test_the_batch_is_the_first_dimension_of_the_first_tensor_that_has_one(value: Any, size: int) -> None:
    assert Inputs.of(value).batch_size == size


@given(rows=st.integers(1, 5), size=st.integers(1, 9))
def test_a_grown_batch_repeats_its_rows_and_leaves_other_tensors_alone(rows: int, size: int) -> None:
    batch, table = torch.arange(rows).reshape(rows, 1), torch.zeros(rows + 1, 2)
    grown = Inputs((batch, table, 7)).batched(size)
    result, same, number = grown.leaves()
    assert grown.batch_size >= size and grown.batch_size % rows == 0 and grown.batch_size < size + rows
    assert torch.equal(result[:, 0], torch.arange(len(result)) % rows)
    assert torch.equal(same, table) and number == 7


@given(rows=st.integers(1, 7), size=st.integers(1, 9))
def test_pieces_of_a_batch_are_its_rows_in_order(rows: int, size: int) -> None:
    batch, table = torch.randn(rows, 2), torch.zeros(rows + 1)
    pieces = [*Inputs((batch,), {"table": table, "flag": True}).split(size)]
    assert all(piece.batch_size <= size and piece.kwargs["flag"] for piece in pieces)
    assert torch.equal(torch.cat([piece.args[0] for piece in pieces]), batch)
    assert all(torch.equal(piece.kwargs["table"], table) for piece in pieces)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_a_user_error_that_says_where(bad: float) -> None:
    with pytest.raises(UserError, match=r"calibration batch 3.*tensor 1"):
        check_tensors(Inputs((x, torch.tensor([bad]))), "calibration batch 3")


@pytest.mark.parametrize("bad", [(), 3, "text", {"a": None}])
def test_inputs_without_a_tensor_are_a_user_error(bad: Any) -> None:
    with pytest.raises(UserError, match="tensor in example_inputs"):
        check_tensors(Inputs.of(bad), "example_inputs")


def test_an_empty_batch_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"non-empty.*\[0, 3\]"):
        check_tensors(Inputs.of(torch.zeros(0, 3)), "example_inputs")


@pytest.mark.parametrize("good", [x, torch.tensor([1]), torch.tensor([True]), torch.tensor([1j])])
def test_finite_inputs_pass(good: Tensor) -> None:
    made = Inputs.of(good)
    assert check_tensors(made, "example_inputs") is made
