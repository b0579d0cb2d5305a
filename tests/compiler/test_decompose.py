"""What PyTorch cannot decompose, in other operators: against the operators themselves."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.compiler.decompose import own_decompositions

aten = torch.ops.aten
OWN = own_decompositions([aten.histc.default, aten._grouped_mm.default, aten.add.Tensor])


def test_only_what_is_known_is_taken_apart() -> None:
    assert OWN.keys() == {aten.histc.default, aten._grouped_mm.default}


@given(st.lists(st.integers(-3, 12), min_size=1, max_size=20), st.integers(1, 10))
def test_a_histogram_of_whole_numbers_is_that_of_pytorch(values: list[int], bins: int) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(OWN[aten.histc.default](x, bins, 0, bins), torch.histc(x, bins, 0, bins))


def test_a_histogram_without_limits_is_left_to_others() -> None:
    assert OWN[aten.histc.default](torch.randn(4)) is NotImplemented


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 3))
def test_each_row_meets_the_matrix_of_its_group(counts: list[int], behind: int) -> None:
    ends = torch.tensor(counts).cumsum(0)
    rows, matrices = torch.randn(sum(counts) + behind, 3), torch.randn(len(counts), 3, 2)
    wanted = [own @ matrix for own, matrix in zip(rows.split([*counts, behind]), matrices, strict=False)]
    got = OWN[aten._grouped_mm.default](rows, matrices, ends)
    torch.testing.assert_close(got, torch.cat([*wanted, torch.zeros(behind, 2)]))


def test_groups_of_other_axes_are_left_to_others() -> None:
    assert OWN[aten._grouped_mm.default](torch.randn(2, 3, 4), torch.randn(2, 4, 5)) is NotImplemented
