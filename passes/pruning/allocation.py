"""How many units each group loses, so that a share of the MACs, the parameters or the estimated latency goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from planish.compiler.alignment import Alignment, Counts, Curves, curves_of
from planish.compiler.coupling.dims import Dim
from planish.compiler.coupling.groups import Group

Removed = dict[Group, list[int]]


class Allocation:
    """The numbers of units that groups keep; the units with the lowest scores go.

    ``fixed``: how many units the user wants kept, for some groups. ``least``: the share of its size that each axis
    keeps in the other groups.
    """

    def __init__(
        self,
        scores: Mapping[Group, Tensor],
        alignment: Alignment,
        fixed: Mapping[Group, float],
        least: float,
    ) -> None:
        self.alignment, self.fixed, self.least = alignment, fixed, least
        self.orders: dict[Group, Counts] = {
            group: np.argsort(of.numpy(), kind="stable") for group, of in scores.items()
        }
        self.curves: dict[Group, Curves] = {group: curves_of(group, order) for group, order in self.orders.items()}
        self._in_order = alignment.in_order(scores)
        self._choices: dict[Group, Counts] = {}

    def kept(self, wanted: Mapping[Group, float]) -> dict[Group, int]:
        """For each group the nearest number of units to the one ``wanted`` that it may keep."""
        kept: dict[Group, int] = {}
        left: dict[Dim, int] = {}
        for group in self._in_order:
            wish = self.fixed.get(group, wanted[group])
            choices = self._possible(group, left)
            kept[group] = int(choices[np.argmin(np.abs(choices - wish))])
            left.update(self.left({group: kept[group]}))
        return kept

    def _possible(self, group: Group, left: Mapping[Dim, int]) -> Counts:
        if group in self._choices:
            return self._choices[group]
        least = 0.0 if group in self.fixed else self.least
        choices = self.alignment.choices(group, self.curves[group], left, least)
        if self.alignment.is_independent(group):
            self._choices[group] = choices
        return choices

    def narrowest(self) -> dict[Group, int]:
        return self.kept(dict.fromkeys(self.orders, 0))

    def left(self, kept: Mapping[Group, int]) -> dict[Dim, int]:
        """What is left of atoms where groups keep so many units."""
        return {atom: int(curve[count]) for group, count in kept.items() for atom, curve in self.curves[group].items()}

    def removed(self, kept: Mapping[Group, int]) -> Removed:
        return {
            group: self.orders[group][: group.width - count].tolist()
            for group, count in kept.items()
            if count < group.width
        }


# ---------------------------------------------------------------------- how far


def smallest(fits: Callable[[int], bool], highest: int) -> int | None:
    """The smallest number in 0 … ``highest`` that fits, by bisection; None if not even the highest does."""
    if not fits(highest):
        return None
    low, high = 0, highest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return high


def global_wishes(keys: Mapping[Group, Tensor]) -> tuple[int, Callable[[int], dict[Group, float]]]:
    """All units of all groups in one row: how many there are, and what each group keeps if the first so many go."""
    groups = [*keys]
    flat = np.concatenate([np.sort(keys[group].numpy()) for group in groups])
    owners = np.repeat(np.arange(len(groups)), [group.width for group in groups])
    places = np.empty(len(flat), np.int64)
    places[np.argsort(flat, kind="stable")] = np.arange(len(flat))
    of_group = [np.sort(places[owners == index]) for index in range(len(groups))]

    def wishes(gone: int) -> dict[Group, float]:
        return {
            group: group.width - int(np.searchsorted(own, gone)) for group, own in zip(groups, of_group, strict=True)
        }

    return len(flat), wishes


FINENESS = 1000


def local_wishes(groups: Sequence[Group], alignment: Alignment) -> tuple[int, Callable[[int], dict[Group, float]]]:
    """Every resulting width loses the same share, one group after the other a little more.

    Where factors nest in one axis, the widest group takes all of it.
    """
    carriers = [group for group in groups if _carries(group, groups, alignment)]

    def wishes(step: int) -> dict[Group, float]:
        whole = {group: float(group.width) for group in groups}
        shares = {group: (step + index) // len(carriers) / FINENESS for index, group in enumerate(carriers)}
        return whole | {group: group.width * (1 - min(1.0, share)) for group, share in shares.items()}

    return FINENESS * len(carriers), wishes


def _carries(group: Group, groups: Sequence[Group], alignment: Alignment) -> bool:
    """Whether no wider group is a factor of the same axis."""
    for axis in alignment.of(group):
        if any(len(atoms) > 1 for _, atoms in axis.products):
            sharing = [other for other in groups if not axis.atoms.isdisjoint(other.units)]
            if max(sharing, key=lambda other: other.width) is not group:
                return False
    return True
