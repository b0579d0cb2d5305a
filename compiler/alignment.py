"""Which widths run fast on a device: the axes that multiplying nodes compute along, as multiples of its alignment.

What has to be a multiple is the whole axis: groups x channels in each, heads x width of a head. A part of a
concatenation counts as an axis of its own. An axis narrower than one multiple gains nothing by a cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import fx

from planish.compiler.coupling.dims import Dim, factors, terms
from planish.compiler.coupling.groups import Group
from planish.compiler.hardware import HardwareProfile
from planish.compiler.roofline import float_dtype
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.widths import Widths

Counts = np.ndarray[tuple[int], np.dtype[np.int64]]
Curves = Mapping[Dim, Counts]
"""Atom -> how many of its indices are left with 0, 1, … units of its group."""


def asked_alignment(profile: HardwareProfile, scheme: QuantizationScheme | None) -> int:
    """The multiple that runs fast in what the device will compute in: INT8 where it can, floats elsewhere."""
    for dtype in ("int8", float_dtype(profile)) if scheme is not None else (float_dtype(profile),):
        if dtype in profile.channel_alignment:
            return int(profile.channel_alignment[dtype].value)
    return 1


@dataclass(frozen=True)
class Axis:
    """An axis as a sum of products of atoms."""

    products: tuple[tuple[int, tuple[Dim, ...]], ...]
    """A constant factor and the atoms that can be cut, of each product."""

    def sizes(self, left: Mapping[Dim, int | Counts]) -> int | Counts:
        """The size; several at once, where ``left`` has several sizes of an atom."""
        total: int | Counts = 0
        for constant, atoms in self.products:
            size: int | Counts = constant
            for atom in atoms:
                size = size * left.get(atom, atom.size)
            total = total + size
        return total

    @cached_property
    def whole(self) -> int:
        return int(self.sizes({}))

    @cached_property
    def atoms(self) -> set[Dim]:
        return {atom for _, atoms in self.products for atom in atoms}


def find_axes(widths: Widths) -> tuple[Axis, ...]:
    """The axes along which multiplying nodes compute; each part of a concatenation as one of its own."""
    axes = (_axis(term, widths) for dim in computed_along(widths) for term in terms(dim))
    return tuple(dict.fromkeys(axis for axis in axes if axis.atoms))


def computed_along(widths: Widths) -> dict[Dim, None]:
    """The dimensions along which multiplying nodes compute: of their weights all, of activations the last."""
    return {dim: None for node in widths.multiplying for dim in _dims_of(node, widths)}


def _dims_of(node: fx.Node, widths: Widths) -> Iterator[Dim]:
    tensors = [value for value in node.all_input_nodes if widths.costs.shapes(value)]  # the rest are sizes
    weights = [value for value in tensors if widths.costs.folds(value)]
    for weight in weights:
        yield from filter(None, widths.dims_with_atoms(weight))
    if not weights:
        for value in (node, *tensors):
            yield from filter(None, widths.dims_with_atoms(value)[-1:])


def _axis(dim: Dim, widths: Widths) -> Axis:
    """``dim`` multiplied out."""
    products: list[tuple[int, tuple[Dim, ...]]] = [(1, ())]
    for factor in factors(dim):
        parts = [_axis(part, widths) for part in factor.parts] if factor.kind == "sum" else []
        inner = [product for part in parts for product in part.products]
        if factor.kind == "atom":
            inner = [(1, (factor,))] if factor in widths.free else [(factor.size, ())]
        products = [(a * b, (*outer, *atoms)) for a, outer in products for b, atoms in inner]
    return Axis(tuple((constant, tuple(sorted(atoms, key=id))) for constant, atoms in products))


class Alignment:
    """How many units a group may keep, so that axes are multiples of ``multiple`` and at least ``minimum`` wide."""

    def __init__(
        self, axes: Iterable[Axis], multiple: int, minimum: int = 1, shrunk: Mapping[Dim, float] | None = None
    ) -> None:
        """``shrunk``: the share of an atom that earlier cuts left."""
        self.multiple, self.minimum, self._shrunk = multiple, minimum, shrunk or {}
        self._axes_of: dict[Dim, list[Axis]] = {}
        for axis in axes:
            for atom in axis.atoms:
                self._axes_of.setdefault(atom, []).append(axis)

    def of(self, group: Group) -> list[Axis]:
        """The axes that the group lies in."""
        return [*dict.fromkeys(axis for atom in group.units for axis in self._axes_of.get(atom, ()))]

    def choices(self, group: Group, curves: Curves, left: Mapping[Dim, int], least: float = 0.0) -> Counts:
        """The numbers of units that may be kept, the other groups being at ``left``; all of them always may.

        ``least``: the share of its first size that an axis keeps.
        """
        fits = np.arange(group.width + 1) >= 1
        for axis in self.of(group):
            whole = axis.whole
            if whole < self.multiple:
                fits[:] = False
            sizes = np.asarray(axis.sizes({**left, **curves}))
            fits &= (sizes % self.multiple == 0) & (sizes >= min(self.minimum, whole))
            fits &= sizes >= least * whole / self._share_left(axis)
        for curve in curves.values():  # a unit may be several indices: no atom loses its last one
            fits &= curve > 0
        fits[-1] = True
        return np.flatnonzero(fits)

    def _share_left(self, axis: Axis) -> float:
        return min(math.prod(self._shrunk.get(atom, 1.0) for atom in atoms) for _, atoms in axis.products)

    def is_independent(self, group: Group) -> bool:
        """Whether what other groups keep changes nothing."""
        return all(axis.atoms <= group.units.keys() for axis in self.of(group))

    def in_order(self, groups: Iterable[Group]) -> list[Group]:
        """Those whose axes are theirs alone first, then the wider ones: the others follow them."""
        return sorted(groups, key=lambda group: (not self._alone(group), -group.width))

    def _alone(self, group: Group) -> bool:
        return any(axis.atoms <= group.units.keys() for axis in self.of(group))


def curves_of(group: Group, order: Counts) -> Curves:
    """What is left of the group's atoms with 0, 1, … units, if units go in ``order``."""
    curves: dict[Dim, Counts] = {}
    for atom, cells in group.units.items():
        counted = np.bincount(cells[cells >= 0], minlength=group.width)
        gone = np.concatenate([[0], np.cumsum(counted[order])])
        curves[atom.root()] = (atom.size - gone)[::-1]
    return curves
