from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.passes.sparsity.criteria import gram, kept_share, magnitude, squared_norms, wanda
from planish.passes.sparsity.patterns import Blocks, NOfM, Pattern


@given(kept=st.integers(1, 3), norm=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_wanda_is_magnitude_where_all_inputs_have_equal_norm(kept: int, norm: float, seed: int) -> None:
    weight = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
    same = torch.full((2, 8), norm)
    ours, keep = wanda(weight, same, NOfM(kept, 4), 0)
    theirs, expected = magnitude(weight, None, NOfM(kept, 4), 0)
    assert torch.equal(keep, expected) and torch.equal(ours, theirs)


@pytest.mark.parametrize("pattern", [Blocks(), Blocks(2, 2)])
def test_wanda_compares_within_an_output_and_magnitude_within_the_layer(pattern: Pattern) -> None:
    weight = torch.cat([torch.full((1, 2, 8), 0.1), torch.full((1, 2, 8), 9.0)], 1) * torch.rand(1, 4, 8).add(1)
    _, by_output = wanda(weight, torch.ones(1, 8), pattern, 0.5)
    _, by_layer = magnitude(weight, None, pattern, 0.5)
    assert by_output[0, :2].float().mean() == 0.5 and by_output[0, 2:].float().mean() == 0.5
    assert not by_layer[0, :2].any() and by_layer[0, 2:].all()


def test_wanda_weighs_by_the_norm_of_the_input() -> None:
    weight = torch.tensor([[[3.0, 2.0, 1.0, 0.5]]])
    inputs = torch.tensor([[[0.1, 1.0, 1.0, 9.0]]])
    left, _ = wanda(weight, squared_norms(inputs), NOfM(2, 4), 0)
    assert left.tolist() == [[[0, 2.0, 0, 0.5]]]


def test_statistics_add_up_over_calls() -> None:
    rows = torch.randn(2, 10, 3, dtype=torch.float64)
    torch.testing.assert_close(gram(rows[:, :4]) + gram(rows[:, 4:]), gram(rows))
    torch.testing.assert_close(gram(rows).diagonal(dim1=1, dim2=2), squared_norms(rows))


def test_the_kept_share_is_that_of_the_absolute_values() -> None:
    weight = torch.tensor([3.0, -1.0, 4.0, -2.0])
    assert kept_share(weight, torch.tensor([True, False, True, False])) == pytest.approx(0.7)
    assert kept_share(torch.zeros(4), torch.zeros(4, dtype=torch.bool)) == 1
