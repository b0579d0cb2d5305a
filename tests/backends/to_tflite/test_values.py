"""Orders of dimensions: what is reshaped without moving holds the same values as PyTorch's reshape."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ai_edge_litert")
from planish.backends.to_tflite.values import Stored, Value, arranged, channels_last, only_ones_move, reshaped


def value(sizes: tuple[int, ...], order: tuple[int, ...]) -> Value:
    return Value(Stored("x", arranged(sizes, order), torch.float32), order)


def factorizations(total: int, most: int) -> list[tuple[int, ...]]:
    sizes = [size for size in range(1, total + 1) if total % size == 0]
    return [f for rank in range(1, most + 1) for f in itertools.product(sizes, repeat=rank) if math.prod(f) == total]


@given(st.data())
def test_a_reshape_that_moves_nothing_is_the_one_of_pytorch(data: st.DataObject) -> None:
    total = data.draw(st.sampled_from([1, 2, 4, 6, 8, 12, 24]))
    shapes = st.sampled_from(factorizations(total, 5))
    before, after = data.draw(shapes), data.draw(shapes)
    order = tuple(data.draw(st.permutations(range(len(before)))))
    found = reshaped(value(before, order), after)
    if found is None:
        return
    shape, after_order = found
    x = torch.arange(total).reshape(before)
    lying = x.permute(order).contiguous()
    assert torch.equal(lying.reshape(shape), x.reshape(after).permute(after_order))


def test_channels_split_into_groups_without_moving() -> None:
    assert reshaped(value((2, 12, 5, 5), channels_last(4)), (2, 3, 4, 5, 5)) == ((2, 5, 5, 3, 4), (0, 3, 4, 1, 2))


def test_flattening_an_image_has_to_move_it() -> None:
    assert reshaped(value((2, 3, 4, 5), channels_last(4)), (2, 60)) is None


def test_flattening_one_pixel_moves_nothing() -> None:
    assert reshaped(value((2, 3, 1, 1), channels_last(4)), (2, 3)) == ((2, 3), (0, 1))


def test_moving_ones_is_no_transpose() -> None:
    assert only_ones_move(value((2, 3, 1, 1), channels_last(4)), (0, 1, 2, 3))
    assert not only_ones_move(value((2, 3, 4, 1), channels_last(4)), (0, 1, 2, 3))
