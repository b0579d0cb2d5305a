from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from planish.passes.sparsity.criteria import gram, magnitude
from planish.passes.sparsity.patterns import Blocks, NOfM, Pattern
from planish.passes.sparsity.sparsegpt import DAMPING, reconstruct


@dataclass(frozen=True)
class FirstColumns:
    """Removes the first ``count`` columns: then all that is left lies to the right of what goes."""

    count: int
    columns: int
    rows = 1

    def keep(self, scores: Tensor, ratio: float) -> Tensor:
        kept = torch.ones_like(scores, dtype=torch.bool)
        kept[..., : self.count] = False
        return kept


def damped(gram: Tensor) -> Tensor:
    return gram + DAMPING * gram.diagonal(dim1=1, dim2=2).mean() * torch.eye(gram.shape[1], dtype=gram.dtype)


def least_squares(weight: Tensor, gram: Tensor, keep: Tensor) -> Tensor:
    """The best weights with zeros where ``keep`` says, row by row, by solving the normal equations."""
    best = torch.zeros_like(weight)
    for row in range(weight.shape[1]):
        kept = keep[0, row]
        best[0, row, kept] = torch.linalg.solve(gram[0][kept][:, kept], (gram[0] @ weight[0, row])[kept])
    return best


def error(change: Tensor, gram: Tensor) -> float:
    return float(((change @ gram) * change).sum())


def problem(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight, and the Gram matrix of correlated inputs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 4 * columns, columns, generator=generator, dtype=torch.float64) @ mixing
    return torch.randn(1, rows, columns, generator=generator, dtype=torch.float64), gram(x)


@given(columns=st.integers(2, 24), rows=st.integers(1, 4), seed=st.integers(0, 99), share=st.floats(0.1, 0.9))
def test_what_is_left_is_the_least_squares_solution_where_it_all_lies_to_the_right(
    columns: int, rows: int, seed: int, share: float
) -> None:
    weight, of_inputs = problem(rows, columns, seed)
    left, keep = reconstruct(weight, of_inputs, FirstColumns(max(1, int(share * columns)), columns), 0)  # type: ignore[arg-type]
    torch.testing.assert_close(left, least_squares(weight, damped(of_inputs), keep), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("pattern", [NOfM(2, 4), NOfM(1, 4), Blocks(), Blocks(4, 4), Blocks(4, 1)])
@given(seed=st.integers(0, 30))
def test_its_error_lies_between_that_of_least_squares_and_that_of_no_update(pattern: Pattern, seed: int) -> None:
    weight, of_inputs = problem(8, 48, seed)
    left, keep = reconstruct(weight, of_inputs, pattern, 0.5)
    assert bool((left[~keep] == 0).all())
    found, best = error(weight - left, damped(of_inputs)), least_squares(weight, damped(of_inputs), keep)
    assert error(weight - best, damped(of_inputs)) <= found * (1 + 1e-9)
    assert found < error(weight * ~keep, damped(of_inputs))


@pytest.mark.parametrize("pattern", [NOfM(2, 4), NOfM(1, 4), Blocks(), Blocks(4, 4), Blocks(4, 1)])
def test_over_many_layers_its_error_is_below_that_of_magnitude(pattern: Pattern) -> None:
    problems = [problem(8, 48, seed) for seed in range(20)]
    ours = sum(error(weight - reconstruct(weight, seen, pattern, 0.5)[0], seen) for weight, seen in problems)
    largest = sum(error(weight - magnitude(weight, None, pattern, 0.5)[0], seen) for weight, seen in problems)
    assert ours < 0.9 * largest


def test_strips_wider_than_the_layer_and_narrower_ones_give_the_pattern_everywhere() -> None:
    weight, of_inputs = problem(3, 200, 0)  # a strip of 128, and the rest
    _, keep = reconstruct(weight, of_inputs, NOfM(2, 4), 0)
    assert bool((keep.unflatten(2, (-1, 4)).sum(3) == 2).all())
    _, keep = reconstruct(weight, of_inputs, Blocks(), 0.5)
    assert float(keep.double().mean()) == 0.5


def test_groups_are_problems_of_their_own() -> None:
    problems = [problem(4, 16, seed) for seed in (1, 2)]
    together, _ = reconstruct(torch.cat([w for w, _ in problems]), torch.cat([g for _, g in problems]), NOfM(2, 4), 0)
    alone = [reconstruct(*each, NOfM(2, 4), 0)[0] for each in problems]
    torch.testing.assert_close(together, torch.cat(alone))


def test_columns_that_never_saw_an_input_become_zero() -> None:
    weight, of_inputs = problem(4, 8, 0)
    of_inputs[:, 3], of_inputs[:, :, 3] = 0, 0
    left, _ = reconstruct(weight, of_inputs, Blocks(), 0.25)
    assert bool((left[:, :, 3] == 0).all()) and bool(torch.isfinite(left).all())


def test_inputs_of_low_rank_are_damped_until_they_can_be_inverted() -> None:
    one = torch.randn(1, 1, 64)
    left, keep = reconstruct(torch.randn(1, 4, 64), gram(1e6 * one), NOfM(2, 4), 0)
    assert bool(torch.isfinite(left).all()) and float(keep.float().mean()) == 0.5
