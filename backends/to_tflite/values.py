"""A tensor of the file under construction: its sizes as they lie there, and which dimension of the Program is which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Order = tuple[int, ...]
"""Place in the file -> dimension of the Program: (0, 2, 3, 1) is channels last."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Quantization:
    """real = scale * (integer - zero); one of each, or one for each index along ``axis`` (a place in the file)."""

    scales: tuple[float, ...]
    zeros: tuple[int, ...]
    axis: int = 0


@dataclass(eq=False)
class Stored:
    """A tensor of the file."""

    name: str
    shape: Shape
    dtype: torch.dtype
    quantization: Quantization | None = None
    data: Callable[[], Tensor] | None = None
    """Of a constant: makes it; called when the file is written."""


@dataclass(frozen=True)
class Value:
    """A stored tensor as the Program sees it. With a ``quantization`` its integers stand for real numbers."""

    stored: Stored
    order: Order

    @property
    def shape(self) -> Shape:
        """The sizes as they lie in the file."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    @property
    def quantization(self) -> Quantization | None:
        return self.stored.quantization

    @property
    def sizes(self) -> Shape:
        """The shape in the Program."""
        found = [0] * len(self.shape)
        for place, dim in enumerate(self.order):
            found[dim] = self.shape[place]
        return tuple(found)

    def place(self, dim: int) -> int:
        """Where dimension ``dim`` of the Program lies in the file."""
        return self.order.index(dim % len(self.order))


def plain(rank: int) -> Order:
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    return (0, *range(2, rank), 1) if rank > 2 else plain(rank)


def arranged(sizes: Sequence[int], order: Order) -> Shape:
    """``sizes`` of the Program as they lie in the file."""
    return tuple(sizes[dim] for dim in order)


def only_ones_move(value: Value, order: Order) -> bool:
    """Whether another order leaves all values where they are: only dimensions of size 1 change places."""
    sizes = value.sizes
    return [d for d in value.order if sizes[d] != 1] == [d for d in order if sizes[d] != 1]


def reshaped(value: Value, target: Shape) -> tuple[Shape, Order] | None:
    """Shape and order in which ``value`` becomes ``target`` without moving anything; None if something must move.

    Dimensions fall into groups of equal products on both sides. Where each group lies together and in order in the
    file, the groups stay where they are.
    """
    groups = _groups(value.sizes, target)
    if groups is None:
        return None
    sizes = value.sizes
    group_of = {dim: index for index, (own, _) in enumerate(groups) for dim in own}
    sequence = [dim for dim in value.order if sizes[dim] != 1]
    together: list[int] = []
    for before, dim in zip([None, *sequence], sequence, strict=False):
        if before is None or group_of[before] != group_of[dim]:
            together.append(group_of[dim])
        elif before > dim:
            return None
    if len(together) != len(set(together)):
        return None
    for index in range(len(groups)):  # groups of ones go behind the group ahead of them
        if index not in together:
            together.insert(together.index(index - 1) + 1 if index else 0, index)
    order = tuple(dim for index in together for dim in groups[index][1])
    return arranged(target, order), order


def _groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]] | None:
    if 0 in before or 0 in after:
        return None
    groups: list[tuple[list[int], list[int]]] = []
    left = right = 0
    while left < len(before) or right < len(after):
        own, new = [], []
        products = [1, 1]
        if left < len(before):
            own.append(left)
            products[0] *= before[left]
            left += 1
        if right < len(after) and (products[0] != 1 or not own or after[right] == 1):
            new.append(right)
            products[1] *= after[right]
            right += 1
        while products[0] != products[1]:
            smaller = 0 if products[0] < products[1] else 1
            if smaller == 0:
                own.append(left)
                products[0] *= before[left]
                left += 1
            else:
                new.append(right)
                products[1] *= after[right]
                right += 1
        groups.append((own, new))
    return groups
