from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.passes.sparsity.layers import Layer, find_layers
from planish.passes.sparsity.patterns import Blocks
from planish.passes.sparsity.ratios import ratios
from planish.passes.sparsity.walk import weight_of
from tests.passes.nets import traced


def weights_of(*layers: nn.Linear) -> dict[Layer, Tensor]:
    program = traced(nn.Sequential(*layers), torch.randn(2, layers[0].in_features))
    return {layer: weight_of(program, layer) for layer in find_layers(program)[0]}


def lamp(weights: list[Tensor]) -> list[list[float]]:
    """The scores of arXiv:2010.07611, equation 3, one by one."""
    return [
        [u * u / sum(v * v for v in flat if abs(v) >= abs(u)) for u in flat]
        for flat in (weight.double().flatten().tolist() for weight in weights)
    ]


@given(ratio=st.floats(0.05, 0.95), scale=st.floats(1e-2, 1e2), seed=st.integers(0, 50))
def test_one_threshold_on_lamp_scores_decides_the_share_of_each_layer(ratio: float, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    first, second = nn.Linear(5, 6), nn.Linear(6, 4)
    with torch.no_grad():
        second.weight *= scale
    weights = weights_of(first, second)
    scores = lamp([first.weight.detach(), second.weight.detach()])
    every = sorted(score for of in scores for score in of)
    removed = round(ratio * len(every))
    found = ratios(weights, Blocks(), ratio)
    assert [share * weight.numel() for share, weight in zip(found.values(), weights.values(), strict=True)] == [
        pytest.approx(sum(score <= every[removed - 1] for score in of) if removed else 0) for of in scores
    ]
    assert all(share < 1 for share in found.values())


def test_the_scale_of_a_layer_does_not_count() -> None:
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    before = [*ratios(weights_of(first, second), Blocks(), 0.8).values()]
    with torch.no_grad():
        second.weight *= 1e-3
    assert [*ratios(weights_of(first, second), Blocks(), 0.8).values()] == pytest.approx(before)


def test_tiles_count_as_one() -> None:
    found = ratios(weights_of(nn.Linear(8, 8), nn.Linear(8, 16)), Blocks(4, 4), 0.5)
    for count, share in zip((4, 8), found.values(), strict=True):
        assert count * share == pytest.approx(round(count * share))
    assert sum(count * share for count, share in zip((4, 8), found.values(), strict=True)) == pytest.approx(6)
