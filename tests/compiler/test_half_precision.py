"""A Program as computed in 16 bits, and what an artifact may lose to that."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from planish.compiler.errors import UserError, VerificationError
from planish.compiler.half_precision import in_half_precision, rounded
from planish.compiler.inputs import Inputs
from planish.compiler.report import Error
from planish.compiler.trace import trace
from planish.compiler.verify import HALF_SLACK_DB, OVERFLOW, demand_rounded


@settings(max_examples=20, deadline=None)
@given(st.floats(-6e4, 6e4, width=32))
def test_a_number_is_rounded_as_torch_rounds_it(value: float) -> None:
    tensor = torch.tensor([value])
    assert rounded(tensor).item() == tensor.half().float().item()


def test_what_is_beyond_the_range_ends_at_it_and_infinity_stays() -> None:
    values = torch.tensor([1e9, -1e9, torch.inf, -torch.inf])
    assert rounded(values).tolist() == [65504.0, -65504.0, torch.inf, -torch.inf]
    assert rounded(torch.tensor([2**40])).tolist() == [2**40]


def test_each_result_and_each_constant_is_rounded() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16).eval()
    program = trace(nn.Sequential(layer, nn.ReLU()), Inputs((torch.randn(2, 16),)))
    x = torch.randn(3, 16)
    wanted = nn.functional.linear(x.half().float(), layer.weight.half().float(), layer.bias.half().float())
    assert torch.equal(in_half_precision(program)(x), wanted.half().float().relu())


def error(snr: float | None, largest: float = 0.1) -> Error:
    return Error(output=0, dtype="float32", max_abs=largest, max_relative=0.1, snr_db=snr)


def test_an_error_beyond_rounding_is_a_failed_proof() -> None:
    demand_rounded([error(60.0)], [error(60.0 + HALF_SLACK_DB - 0.1)])
    with pytest.raises(VerificationError, match=r"has 50\.0 dB against the Program; rounding to .* 60\.0 dB"):
        demand_rounded([error(50.0)], [error(60.0 + HALF_SLACK_DB)])
    with pytest.raises(VerificationError):
        demand_rounded([error(30.0)], [error(None)])


def test_an_overflow_is_the_models_and_no_bug_of_planish() -> None:
    with pytest.raises(UserError, match="Compile in float32: output 0"):
        demand_rounded([error(-300.0, OVERFLOW)], [error(60.0)])
