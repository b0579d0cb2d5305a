from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planish.passes.calibrators import CALIBRATORS, Histogram, entropy, minmax, mse, percentile

SHARES = np.linspace(1.0, 0.21, 80)


def histogram(values: np.ndarray, bins: int = 200) -> Histogram:
    counts, edges = np.histogram(values, bins=bins)
    centres = (edges[:-1] + edges[1:]) / 2
    centres[0], centres[-1] = values.min(), values.max()
    return centres, counts.astype(np.float64)


def normal(seed: int = 0, outliers: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.normal(0.3, 1, 20_000), generator.uniform(-30, 40, outliers)])


samples = st.tuples(st.integers(0, 99), st.integers(0, 5)).map(lambda drawn: histogram(normal(*drawn)))
any_histogram = arrays(np.float64, 32, elements=st.integers(0, 50).map(float)).flatmap(
    lambda counts: st.tuples(st.floats(-9, 9), st.floats(0.1, 20)).map(
        lambda span: (np.linspace(span[0], span[0] + span[1], 32), np.maximum(counts, [1, *[0] * 30, 1]))
    )
)


@given(any_histogram, st.booleans())
def test_minmax_is_the_range_of_the_values(seen: Histogram, symmetric: bool) -> None:
    centres, counts = seen
    low, high = minmax(seen, 255, symmetric)
    assert (low, high) == (centres[counts > 0].min(), centres[counts > 0].max())


@settings(max_examples=30)
@given(samples)
def test_percentile_clips_one_value_in_ten_thousand_and_not_one_bin_more(seen: Histogram) -> None:
    centres, counts = seen
    low, high = percentile(seen, 255, False)
    total = counts.sum()
    share = 1e-4 / 2  # on each side
    assert counts[centres > high].sum() / total <= share
    assert counts[centres < low].sum() / total <= share
    assert counts[centres >= high].sum() / total >= share or high == centres[-1]
    assert counts[centres <= low].sum() / total >= share or low == centres[0]


def test_percentile_clips_one_side_only_where_the_values_have_one_sign() -> None:
    centres, counts = histogram(np.abs(normal()))
    low, high = percentile((centres, counts), 255, False)
    assert low == centres[0]
    assert counts[centres > high].sum() / counts.sum() <= 1e-4 <= counts[centres >= high].sum() / counts.sum()


def error_by_hand(seen: Histogram, low: float, high: float, steps: int) -> float:
    step = (high - low) / steps
    total = 0.0
    for value, count in zip(*seen, strict=True):
        integer = round((value - low) / step)
        total += count * (low + min(max(integer, 0), steps) * step - value) ** 2
    return total


@settings(max_examples=6)
@given(samples, st.booleans(), st.sampled_from([15, 255]))
def test_mse_is_the_best_of_all_clippings_of_the_grid(seen: Histogram, symmetric: bool, steps: int) -> None:
    low, high = float(seen[0][0]), float(seen[0][-1])
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    losses = [error_by_hand(seen, low * share, high * share, steps) for share in SHARES]
    found = mse(seen, steps, symmetric)
    assert error_by_hand(seen, *found, steps) <= min(losses) * (1 + 1e-9)
    assert min(abs(found[1] - high * share) for share in SHARES) < 1e-9, "not a point of the grid"


def test_mse_clips_outliers_where_steps_are_few_and_nothing_where_they_are_many() -> None:
    seen = histogram(normal(outliers=2), bins=2048)
    few, many = mse(seen, 15, True), mse(seen, 2**16 - 1, True)
    assert few[1] < 0.5 * many[1]
    assert many[1] == pytest.approx(max(-seen[0][0], seen[0][-1]))


def divergence_by_hand(seen: Histogram, low: float, high: float, steps: int) -> float:
    """KL divergence of the clipped values from the same values in ``steps + 1`` cells of even width."""
    inside = [(value, count) for value, count in zip(*seen, strict=True) if low <= value <= high]
    reference = [count for _, count in inside]
    reference[0] += sum(count for value, count in zip(*seen, strict=True) if value < low)
    reference[-1] += sum(count for value, count in zip(*seen, strict=True) if value > high)
    cells: dict[int, list[int]] = {}
    for index in range(len(inside)):
        cells.setdefault(min(index * (steps + 1) // len(inside), steps), []).append(index)
    quantized = [0.0] * len(inside)
    for members in cells.values():
        filled = [index for index in members if inside[index][1] > 0]
        for index in filled:
            quantized[index] = sum(inside[member][1] for member in members) / len(filled)
    smoothing = 1e-6 * sum(reference)
    p = np.array(reference) + smoothing
    q = np.array(quantized) + smoothing
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))


@settings(max_examples=6)
@given(samples, st.booleans())
def test_entropy_is_the_clipping_with_the_least_divergence(seen: Histogram, symmetric: bool) -> None:
    low, high = float(seen[0][0]), float(seen[0][-1])
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    losses = [divergence_by_hand(seen, low * share, high * share, 15) for share in SHARES]
    found = entropy(seen, 15, symmetric)
    assert divergence_by_hand(seen, *found, 15) <= min(losses) + 1e-9


@pytest.mark.parametrize("name", CALIBRATORS)
@settings(max_examples=25)
@given(seen=any_histogram, symmetric=st.booleans(), steps=st.sampled_from([1, 15, 254, 255]))
def test_every_range_is_finite_and_ordered_and_widens_nothing(
    name: str, seen: Histogram, symmetric: bool, steps: int
) -> None:
    low, high = CALIBRATORS[name](seen, steps, symmetric)
    widest = max(abs(float(seen[0][0])), abs(float(seen[0][-1])))
    assert np.isfinite([low, high]).all()
    assert low <= high
    assert -widest <= low and high <= widest
