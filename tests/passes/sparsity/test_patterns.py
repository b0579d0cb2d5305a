from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from planish.compiler.errors import UserError
from planish.compiler.hardware import Figure
from planish.compiler.plugins import registry
from planish.passes.sparsity.patterns import Blocks, NOfM, pattern_named


def brute_force_best(scores: list[float], count: int) -> set[float]:
    return set(sorted(scores, reverse=True)[:count])


@given(kept=st.integers(1, 3), more=st.integers(1, 4), rows=st.integers(1, 4), groups=st.integers(1, 4))
def test_n_of_m_keeps_the_best_of_every_group_and_no_more(kept: int, more: int, rows: int, groups: int) -> None:
    pattern = NOfM(kept, kept + more)
    scores = torch.randperm(2 * rows * groups * pattern.group).float().reshape(2, rows, -1)
    keep = pattern.keep(scores, 0.0)
    for problem in range(2):
        for row in range(rows):
            for start in range(0, scores.shape[2], pattern.group):
                of = slice(start, start + pattern.group)
                values, stays = scores[problem, row, of], keep[problem, row, of]
                assert {*values[stays].tolist()} == brute_force_best(values.tolist(), kept)


@given(ratio=st.floats(0, 1, exclude_max=True), rows=st.integers(1, 6), columns=st.integers(1, 9))
def test_unstructured_removes_the_lowest_scores_of_each_problem(ratio: float, rows: int, columns: int) -> None:
    scores = torch.randperm(2 * rows * columns).float().reshape(2, rows, columns)
    keep = Blocks().keep(scores, ratio)
    for problem in range(2):
        values = scores[problem].flatten().tolist()
        left = len(values) - round(ratio * len(values))
        assert {*scores[problem][keep[problem]].tolist()} == brute_force_best(values, left)


def tile_sums(scores: Tensor, pattern: Blocks) -> list[list[float]]:
    return [
        [
            float(scores[0, r : r + pattern.rows, c : c + pattern.width].sum())
            for c in range(0, scores.shape[2], pattern.width)
        ]
        for r in range(0, scores.shape[1], pattern.rows)
    ]


@given(rows=st.integers(1, 4), width=st.integers(1, 4), down=st.integers(1, 4), across=st.integers(1, 4))
def test_blocks_go_as_a_whole_and_the_weakest_first(rows: int, width: int, down: int, across: int) -> None:
    pattern = Blocks(rows, width)
    scores = torch.rand(1, rows * down, width * across)
    keep = pattern.keep(scores, 0.5)
    sums = tile_sums(scores, pattern)
    kept = tile_sums(keep.float(), pattern)
    assert all(share in (0, rows * width) for row in kept for share in row)
    gone = [
        total for row, of in zip(sums, kept, strict=True) for total, share in zip(row, of, strict=True) if not share
    ]
    stay = [total for row, of in zip(sums, kept, strict=True) for total, share in zip(row, of, strict=True) if share]
    assert len(gone) == round(0.5 * down * across)
    assert not gone or max(gone) <= min(stay, default=float("inf")) + 1e-6


@pytest.mark.parametrize(
    ("kept", "group", "runs"), [(2, 4, True), (1, 4, True), (1, 2, True), (3, 4, False), (4, 8, False)]
)
def test_kernels_for_two_four_run_what_leaves_at_most_two_of_four(kept: int, group: int, runs: bool) -> None:
    assert NOfM(kept, group).is_two_four == runs


def test_a_block_is_what_the_kernels_of_the_device_skip_or_as_large_as_the_user_says() -> None:
    profile = registry().find_profile("x86-avx512-vnni")
    size = (Figure(value=1, estimated=True), Figure(value=4, estimated=True))
    able = profile.model_copy(update={"support": profile.support.model_copy(update={"sparse_block": size})})
    assert pattern_named("block", able) == Blocks(1, 4)
    assert pattern_named("16x8", profile) == Blocks(16, 8) and str(Blocks(16, 8)) == "blocks of 16x8"
    with pytest.raises(UserError, match=r'pattern="4x1": no kernel of x86-64 .* skips blocks'):
        pattern_named("block", profile)


@pytest.mark.parametrize("name", ["4:2", "4:4", "0:4", "2-4", "0x4", "4x", "", 24])
def test_an_unknown_pattern_is_told_with_the_choices(name: str) -> None:
    with pytest.raises(UserError, match=r'pattern="2:4" .*"unstructured", "block", or .* "4x1"'):
        pattern_named(name)
