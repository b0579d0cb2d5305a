from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from planish.compiler.calibration import Calibration, InputForm, first_inputs, from_data
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.trace import trace
from tests.compiler.models import Cnn, case

ONE, TWO = InputForm(("x",), 1), InputForm(("left", "right"), 2)
x, y, labels = torch.randn(4, 3), torch.ones(4, 3), torch.arange(4)


class Open(nn.Module):
    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0, **rest: Tensor) -> Tensor:
        return a + b * scale


def test_the_form_of_a_module_is_that_of_its_forward() -> None:
    assert InputForm.of_module(Open()) == InputForm(("a", "b", "scale"), 2, open_ended=True)
    assert InputForm.of_module(Cnn()) == InputForm(("x",), 1)


def test_the_form_of_a_program_is_that_of_its_example_inputs() -> None:
    found = case("several")
    assert InputForm.of_program(trace(found.model, found.inputs)) == InputForm(("pair", "mask"), 2)
    assert InputForm.of_program(trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))) == InputForm(("x",), 1)


@pytest.mark.parametrize(
    ("form", "batch", "args", "kwargs"),
    [
        (ONE, x, [x], {}),
        (ONE, (x, labels), [x], {}),
        (ONE, [x, labels, labels], [x], {}),
        (ONE, [x], [x], {}),
        (ONE, ([x], labels), [x], {}),
        (TWO, (x, y), [x, y], {}),
        (TWO, (x, y, labels), [x, y], {}),
        (TWO, ((x, y), labels), [x, y], {}),
        (ONE, {"x": x, "labels": labels}, [], {"x": x}),
        (TWO, ({"left": x, "right": y}, labels), [], {"left": x, "right": y}),
        (InputForm(("x",), 1, open_ended=True), {"x": x, "more": y}, [], {"x": x, "more": y}),
    ],
)
def test_inputs_are_told_from_labels(
    form: InputForm, batch: Any, args: list[Tensor], kwargs: dict[str, Tensor]
) -> None:
    found = form.inputs_of(batch)
    assert len(found.args) == len(args) and all(one is other for one, other in zip(found.args, args, strict=True))
    assert set(found.kwargs) == set(kwargs) and all(found.kwargs[name] is value for name, value in kwargs.items())


def test_a_model_that_takes_one_pair_gets_the_pair() -> None:
    class TakesPair(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] + pair[1]

    found = InputForm.of_module(TakesPair()).inputs_of(((x, y), labels))
    assert found.call(TakesPair()).shape == (4, 3)


def test_unknown_names_are_a_user_error_with_the_names_of_forward() -> None:
    with pytest.raises(UserError, match=r"left, right.*got pixels"):
        TWO.inputs_of({"pixels": x})


@pytest.mark.parametrize("batch", ["text", 3, None, (), []])
def test_a_batch_that_holds_no_inputs_is_a_user_error(batch: Any) -> None:
    with pytest.raises(UserError, match="calibration"):
        ONE.inputs_of(batch)


def test_a_data_loader_works_as_it_is_and_is_read_again_and_again() -> None:
    loader = DataLoader(TensorDataset(torch.arange(12.0).reshape(6, 2), torch.zeros(6)), batch_size=4)
    calibration = from_data(loader, ONE)
    for _ in range(2):
        assert [batch.leaves()[0].shape[0] for batch in calibration] == [4, 2]
    assert calibration.origin == "given"


def test_an_iterator_that_can_be_read_once_is_read_again_and_again() -> None:
    calibration = from_data((torch.full((1, 2), float(index)) for index in range(3)), ONE)
    for _ in range(2):
        assert [float(batch.leaves()[0][0, 0]) for batch in calibration] == [0, 1, 2]


@pytest.mark.parametrize("data", [x, {"x": x}])
def test_a_tensor_or_a_dict_is_one_batch(data: Any) -> None:
    assert [batch.batch_size for batch in from_data(data, ONE)] == [4]


@pytest.mark.parametrize("data", [[], iter([]), DataLoader(TensorDataset(torch.zeros(0, 2)))])
def test_data_without_a_batch_is_a_user_error(data: Any) -> None:
    with pytest.raises(UserError, match="empty"):
        from_data(data, ONE)
    with pytest.raises(UserError, match="empty"):
        first_inputs(data, ONE)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    limit=st.integers(1, 30),
    at_once=st.integers(1, 10),
)
def test_samples_are_the_first_rows_in_pieces_of_bounded_size(sizes: list[int], limit: int, at_once: int) -> None:
    rows = torch.arange(sum(sizes)).reshape(-1, 1)
    calibration = Calibration([Inputs((part,)) for part in rows.split(sizes)], "given")
    pieces = [piece.args[0] for piece in calibration.samples(limit, at_once)]
    assert all(1 <= len(piece) <= at_once for piece in pieces)
    assert torch.equal(torch.cat(pieces), rows[:limit])


def test_nan_is_found_in_the_batch_where_it_is() -> None:
    bad = x.clone()
    bad[1, 1] = torch.nan
    calibration = from_data([x, (bad, labels)], ONE)
    with pytest.raises(UserError, match=r"NaN.*calibration batch 1"):
        list(calibration)


@pytest.fixture
def program() -> Program:
    return trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))


@pytest.mark.parametrize(
    "bad",
    [
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 3, 8, 9),
        torch.randn(3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_a_batch_that_does_not_fit_the_program_is_told_with_what_was_expected(program: Program, bad: Tensor) -> None:
    good = torch.randn(5, 3, 8, 8)
    calibration = iter(from_data([good, bad], ONE, program))
    assert next(calibration).batch_size == 5
    with pytest.raises(UserError, match=r"'x' of calibration batch 1 as torch.float32 \[batch, 3, 8, 8\]"):
        next(calibration)


def test_a_batch_with_an_input_missing_is_told(program: Program) -> None:
    found = case("several")
    several = trace(found.model, found.inputs)
    with pytest.raises(UserError, match="the 3 inputs"):
        list(from_data([{"pair": found.inputs.args[0]}], InputForm.of_program(several), several))


def test_the_first_inputs_are_those_of_the_first_batch() -> None:
    batches = [(torch.full((2, 3), float(index)), torch.zeros(2)) for index in range(3)]
    assert first_inputs(batches, ONE).leaves()[0] is batches[0][0]
    assert first_inputs({"x": x}, ONE).kwargs["x"] is x
