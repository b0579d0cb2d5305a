"""Operators on whole numbers, by arithmetic: each against PyTorch itself."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

pytest.importorskip("coremltools")

from planish.backends.to_coreml.checks import CHECKS
from planish.backends.to_coreml.decompositions import DECOMPOSITIONS
from tests.backends.to_coreml.packaged import assert_agrees, program_of

aten = torch.ops.aten
LOWEST, HIGHEST = -(2**31), 2**31 - 1
numbers = st.lists(st.integers(LOWEST, HIGHEST), min_size=1, max_size=8)
quick = settings(max_examples=30)


@quick
@given(numbers, st.integers(LOWEST, HIGHEST), st.sampled_from([torch.int32, torch.int64]))
def test_bits_are_those_of_pytorch_over_all_of_32_bits(values: list[int], other: int, dtype: torch.dtype) -> None:
    x, y = torch.tensor(values, dtype=dtype), torch.tensor([other], dtype=dtype)
    for operator in (aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor):
        assert torch.equal(DECOMPOSITIONS[operator.Tensor](x, y), operator.Tensor(x, y))
        assert torch.equal(DECOMPOSITIONS[operator.Scalar](x, other), operator.Scalar(x, other))
    assert torch.equal(DECOMPOSITIONS[aten.bitwise_not.default](x), ~x)
    assert torch.equal(DECOMPOSITIONS[aten.__rshift__.Scalar](x, 5), x >> 5)
    assert torch.equal(DECOMPOSITIONS[aten.__lshift__.Scalar](x // 64, 5), (x // 64) << 5)


@quick
@given(
    st.integers(5, 9), st.integers(5, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2),
    st.booleans(),
)  # fmt: skip
def test_places_in_a_pool_are_those_of_pytorch(
    height: int, width: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool
) -> None:
    x = torch.randperm(2 * height * width).reshape(1, 2, height, width).float()
    padding = min(padding, kernel // 2)
    given = (x, [kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, ceil)
    wanted = F.max_pool2d(*given, return_indices=True)
    got = DECOMPOSITIONS[aten.max_pool2d_with_indices.default](*given)
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


def test_what_only_we_take_apart_is_no_offence() -> None:
    pytest.importorskip("transformers.integrations.moe", reason="transformers has the operator of experts")

    def experts(x: Tensor) -> Any:
        ends = torch.histc(x[:, 0], 3, 0, 3).cumsum(0, dtype=torch.int32)
        return torch.ops.transformers.grouped_mm_fallback(x, torch.ones(3, 5, 2), ends)

    program = program_of(experts, torch.rand(2, 5))
    (check,) = [check for check in CHECKS if check.name == "has-a-converter"]
    assert not [*check.offenders(program)]


def test_packages_have_bits_places_and_counts() -> None:
    x = torch.tensor([[3, -5, 2**30], [LOWEST, HIGHEST, 0], [1, 2, 3]], dtype=torch.int32)

    def run(x: Tensor) -> Any:
        square = x.float().reshape(-1, 1, 1, 3)
        places = F.max_pool2d(square, (1, 2), 1, return_indices=True)[1]
        return x & 6, x | x.flip(1), ~x ^ 9, x >> 2, places, torch.arange(3.0) + torch.histc(x[:, 0].float(), 3, 0, 3)

    assert_agrees(run, x, tolerance=0.0)
