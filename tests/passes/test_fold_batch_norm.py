from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.passes.fold_batch_norm import FoldBatchNorm
from tests.passes.nets import RandomCnn, context, traced, warm

aten = torch.ops.aten
CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def norms(program: Program) -> int:
    return len([*program.calls(aten.batch_norm.default)])


def fold(program: Program) -> Program:
    folded = FoldBatchNorm().run(program, context())
    verify(folded, "folding")
    return folded


def assert_same(program: Program, folded: Program, *args: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(folded(*args), program(*args), rtol=1e-10, atol=1e-10)


@settings(max_examples=25)
@given(
    dims=st.sampled_from([1, 2, 3]),
    transposed=st.booleans(),
    groups=st.sampled_from([1, 2]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    bias=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 999),
)
def test_folding_keeps_every_output_of_a_convolution_to_ten_digits(
    dims: int, transposed: bool, groups: int, stride: int, dilation: int, bias: bool, affine: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    kind = (TRANSPOSED if transposed else CONVS)[dims]
    layer = kind(4, 6, 3, stride=stride, padding=1, dilation=dilation, groups=groups, bias=bias)
    model = warm(nn.Sequential(layer, NORMS[dims](6, eps=1e-3, affine=affine))).double()
    x = torch.randn(2, 4, *[7] * dims, dtype=torch.float64)
    program = traced(model, x)
    folded = fold(program)
    assert_same(program, folded, x)
    assert norms(folded) == 0
    assert norms(program) == 1, "the original has lost its batch norm"


@settings(max_examples=8)
@given(choices=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_folding_a_random_network_keeps_its_outputs_to_ten_digits(choices: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model = warm(RandomCnn(choices)).double()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    program = traced(model, x)
    folded = fold(program)
    assert norms(folded) == 0
    assert_same(program, folded, x)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_with_named_padding_takes_its_batch_norm_in(padding: str, bias: bool) -> None:
    model = warm(nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding, bias=bias), nn.BatchNorm2d(4))).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    program = traced(model, x)
    folded = fold(program)
    assert norms(folded) == 0
    assert_same(program, folded, x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_linear_layer_takes_its_batch_norm_in(bias: bool, affine: bool) -> None:
    model = warm(nn.Sequential(nn.Linear(5, 4, bias=bias), nn.BatchNorm1d(4, affine=affine))).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    program = traced(model, x)
    folded = fold(program)
    assert norms(folded) == 0
    assert_same(program, folded, x)


def test_a_batch_norm_over_the_second_of_three_axes_does_not_fold_into_a_linear_layer() -> None:
    model = warm(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))).double()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    program = traced(model, x)
    folded = fold(program)
    assert norms(folded) == 1
    assert_same(program, folded, x)


def test_a_batch_norm_over_the_length_of_an_unbatched_convolution_does_not_fold() -> None:
    model = warm(nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6))).double()
    x = torch.randn(3, 6, dtype=torch.float64)  # [channels, length]: the norm sees 6 rows of 6 channels
    program = traced(model, x)
    assert_same(program, fold(program), x)


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        result: Tensor = self.norm(y) + y
        return result


class Shared(nn.Module):
    """One convolution in front of two batch norms, and once in front of none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.b(self.conv(self.a(self.conv(x)))))
        return result


class Reused(nn.Module):
    """One batch norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.b(self.norm(self.a(x))))
        return result


@pytest.mark.parametrize(("model", "left"), [(TwoReaders(), 1), (Shared(), 0), (Reused(), 0)])
def test_shared_layers_fold_only_where_nothing_else_reads_the_result(model: nn.Module, left: int) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    program = traced(warm(model).double(), x)
    folded = fold(program)
    assert norms(folded) == left
    assert_same(program, folded, x)


class ComputedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(torch.conv2d(x, self.weight / self.weight.norm()))
        return result


class NormFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.norm(x))
        return result


@pytest.mark.parametrize(
    "model",
    [
        ComputedWeight(),
        NormFirst(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    ],
)
def test_a_batch_norm_that_cannot_fold_stays_and_computes_the_same(model: nn.Module) -> None:
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    program = traced(warm(model).double(), x)
    folded = fold(program)
    assert norms(folded) == 1
    assert_same(program, folded, x)


def test_folding_leaves_the_weights_of_the_original_as_they_were() -> None:
    x = torch.randn(2, 3, 6, 6)
    program = traced(warm(RandomCnn([0, 0])), x)
    before = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    names = [node.name for node in program.graph.nodes]
    fold(program)
    assert [node.name for node in program.graph.nodes] == names
    assert program.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.state_dict().items())
