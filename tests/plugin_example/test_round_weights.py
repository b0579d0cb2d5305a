from __future__ import annotations

from pathlib import Path

import planish_example
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planish_example.round_weights import RoundWeights, round_mantissa
from torch import nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.errors import UserError
from planish.compiler.hardware import load_profile
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.compiler.trace import trace

BOARD = load_profile(Path(planish_example.__file__).with_name("example-board.toml"))
NORMAL = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.first(x).relu()
        return self.second(hidden)  # type: ignore[no-any-return]


def context() -> Context:
    return Context(BOARD, None, Calibration((), "given"))


def traced(model: nn.Module) -> Program:
    return trace(model, Inputs((torch.randn(2, 6),)))


@given(st.lists(NORMAL, min_size=1))
def test_seven_bits_round_as_bfloat16_does(numbers: list[float]) -> None:
    values = torch.tensor(numbers)
    assert torch.equal(round_mantissa(values, 7), values.bfloat16().float())


@given(st.lists(st.floats(2.0**-14, 65000, width=32), min_size=1))
def test_ten_bits_round_as_float16_does(numbers: list[float]) -> None:
    values = torch.tensor(numbers)
    assert torch.equal(round_mantissa(values, 10), values.half().float())


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_as_many_bits_as_the_dtype_has_change_nothing(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    assert torch.equal(round_mantissa(values, 52), values)


@given(st.lists(NORMAL, min_size=1), st.integers(1, 22))
def test_the_error_is_at_most_half_of_the_last_bit(numbers: list[float], bits: int) -> None:
    values = torch.tensor(numbers).double()
    error = (round_mantissa(values, bits) - values).abs()
    assert bool((error <= values.abs() * 2.0 ** -(bits + 1)).all())


def test_weights_are_rounded_and_biases_are_not() -> None:
    model = nn.Linear(6, 4)
    rounded = RoundWeights(mantissa_bits=7).run(traced(model), context()).state_dict()
    assert torch.equal(rounded["weight"], model.weight.detach().bfloat16().float())
    assert torch.equal(rounded["bias"], model.bias.detach())


def test_the_program_that_was_given_stays_as_it_was_and_the_result_is_valid() -> None:
    program = traced(nn.Linear(6, 4))
    before = program.state_dict()["weight"].clone()
    rounded = RoundWeights(mantissa_bits=2).run(program, context())
    assert torch.equal(program.state_dict()["weight"], before)
    verify(rounded, "round-weights")


def test_tied_weights_stay_tied_and_are_reported_once() -> None:
    told = context()
    rounded = RoundWeights(mantissa_bits=2).run(traced(Tied()), told)
    weights = {id(weight) for name, weight in rounded.graph_module.named_parameters() if weight.ndim == 2}
    assert len(weights) == 1
    assert [decision.outcome for decision in told.decisions] == ["rounded"]


@pytest.mark.parametrize("bits", [0, 53])
def test_an_impossible_number_of_bits_is_refused(bits: int) -> None:
    with pytest.raises(UserError, match=f"between 1 and 52, not {bits}"):
        RoundWeights.from_options({"mantissa_bits": bits})


def test_options_come_back_from_a_saved_plan() -> None:
    assert RoundWeights.from_options(RoundWeights(mantissa_bits=3).options()) == RoundWeights(mantissa_bits=3)
