from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.passes.calibrators import CALIBRATORS, minmax
from planish.passes.observe import Observed, observe
from tests.passes.nets import RandomCnn, aten, the, traced, warm


def seen(*values: Tensor) -> Observed:
    found = Observed()
    for value in values:
        found.see(value)
    return found


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_minmax_covers_the_exact_range_of_all_values_and_zero(sizes: list[int], symmetric: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(size, generator=generator) + seed / 10 - 5 for size in sizes]
    together = torch.cat(values)
    low, high = seen(*values).range(minmax, 255, symmetric)
    assert low == min(0.0, float(together.min()))
    assert high == max(0.0, float(together.max()))


DEGENERATE = {
    "all zero": torch.zeros(100),
    "one constant": torch.full((50,), 3.5),
    "one negative constant": torch.full((50,), -2.0),
    "one value": torch.tensor([0.25]),
    "all negative": -torch.rand(300) - 1,
    "tiny": torch.full((10,), 1e-38),
    "all but zero": torch.tensor([1.4e-42, 3e-43, 0.0]),
    "the minimum of a mask": torch.tensor([torch.finfo(torch.float32).min, 1.0]),
}


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("values", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_values_give_a_finite_range_with_zero_inside(name: str, symmetric: bool, values: Tensor) -> None:
    low, high = seen(values).range(CALIBRATORS[name], 255, symmetric)
    assert np.isfinite([low, high]).all()
    assert low <= 0 <= high
    if bool((values == 0).all()):
        assert (low, high) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["minmax", "percentile", "mse"])
def test_a_constant_is_covered(name: str) -> None:
    low, high = seen(torch.full((50,), 3.5)).range(CALIBRATORS[name], 255, False)
    assert low == 0 and high == pytest.approx(3.5)


def test_an_empty_tensor_changes_nothing() -> None:
    found = seen(torch.randn(0, 3))
    assert (found.low, found.high) == (0.0, 0.0)


@pytest.mark.parametrize("size", [100, 4096, 5000, 8191, 12_000, 16_383, 100_000])
def test_the_sample_is_spread_over_the_whole_tensor(size: int) -> None:
    """A tensor that grows evenly: its sample has the same mean, and reaches both ends."""
    found = seen(torch.linspace(0, 1, size))
    sample = found._sample[: found._count]
    assert float(sample.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(sample.max()) > 0.98


@pytest.mark.parametrize("size", [300, 3000, 20_000])
def test_every_batch_weighs_the_same_however_many_there_are(size: int) -> None:
    batches = 500 if size == 300 else 40
    found = seen(*(torch.full((size,), float(index)) for index in range(1, batches + 1)))
    counts = torch.bincount(found._sample[: found._count].long())[1:].double()
    assert len(counts) == batches
    assert float(counts[-batches // 4 :].mean()) == pytest.approx(float(counts[: batches // 4].mean()), rel=0.25)


def test_the_sample_keeps_the_distribution_of_many_batches() -> None:
    torch.manual_seed(1)
    batches = [torch.randn(8, 16, 12, 12) for _ in range(40)]
    found = seen(*batches)
    sample, everything = found._sample[: found._count], torch.cat(batches).flatten()
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        exact = float(np.quantile(everything.numpy(), share))
        assert float(np.quantile(sample.numpy(), share)) == pytest.approx(exact, abs=0.15)


def test_the_histogram_counts_the_sample_between_the_exact_ends() -> None:
    torch.manual_seed(2)
    centres, counts = seen(torch.randn(3000)).histogram()
    assert counts.sum() >= 3000 and counts.sum() <= 3002
    assert counts[0] >= 1 and counts[-1] >= 1
    assert (np.diff(centres) > 0).all()


def test_the_values_of_a_node_are_those_that_the_program_computes() -> None:
    program = traced(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 3))
    linear, relu = the(program, aten.linear.default), the(program, aten.relu.default)
    batches = [torch.randn(5, 3), torch.randn(1, 3)]
    with torch.no_grad():
        found = observe(program, {linear, relu}, [Inputs.of(batch) for batch in batches])
        weight, bias = program.state_dict()["0.weight"], program.state_dict()["0.bias"]
        exact = torch.cat(batches) @ weight.T + bias
    assert (found[linear].low, found[linear].high) == pytest.approx((float(exact.min()), float(exact.max())))
    assert (found[relu].low, found[relu].high) == pytest.approx((0.0, float(exact.max())))


class Written(nn.Module):
    """What it returns depends on whether ``reshape`` gives a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.reshape(-1).add_(1)
        return y * 2


class Complex(nn.Module):
    """Demands a stride of 1 in the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(self.conv(x)) * 2)


IMAGES = {
    "cnn": (warm(RandomCnn([0, 1, 2, 3, 4, 5, 6])), (3, 8, 6)),
    "writes in place": (Written(), (2, 5, 6)),
    "strides matter": (Complex(), (2, 6, 2)),
}


@pytest.mark.parametrize(("model", "shape"), IMAGES.values(), ids=IMAGES)
def test_the_layout_in_which_images_are_read_changes_no_value(model: nn.Module, shape: tuple[int, ...]) -> None:
    program = traced(model.double(), torch.randn(2, *shape, dtype=torch.float64))
    x = torch.randn(5, *shape, dtype=torch.float64)
    exact: dict[fx.Node, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
                exact[n] = value.clone()
            return value

    with torch.no_grad():
        Recorder(program.graph_module).run(x, enable_io_processing=False)
        found = observe(program, exact.keys(), [Inputs((x,))])
    for node, values in exact.items():
        together = torch.cat([values.flatten(), torch.zeros(1)])
        assert (found[node].low, found[node].high) == pytest.approx((float(together.min()), float(together.max())))
        sample = found[node]._sample[: found[node]._count]
        assert float(sample.mean()) == pytest.approx(float(values.mean()), abs=1e-5), "small enough to be kept whole"


def test_no_batch_is_a_user_error() -> None:
    program = traced(nn.ReLU(), torch.randn(2, 3))
    with pytest.raises(UserError, match="at least one batch"):
        observe(program, {the(program, aten.relu.default)}, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_a_value_that_is_not_finite_is_a_user_error_that_names_the_node(value: float, where: int) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).relu() - x

    program = traced(Scaled(), torch.randn(2, 3))
    batches = [torch.randn(2, 3), torch.randn(2, 3)]
    batches[where][1, 1] = value
    with pytest.raises(UserError, match=r"mul.*infinite or NaN"):
        observe(program, {the(program, aten.mul.Tensor)}, [Inputs.of(batch) for batch in batches])
