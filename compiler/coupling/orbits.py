"""What no factor-wise equation could say, said index by index.

A group norm over a concatenation whose parts do not end at group boundaries couples single channels of one with
single channels of the other. Each index of a free atom is a cell; cells that have to go together are an orbit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from planish.compiler.coupling.dims import Dim, Frozen, atoms, factors, freeze, is_frozen
from planish.compiler.coupling.equations import Equation

Cells = np.ndarray[tuple[int], np.dtype[np.int64]]
PINNED = -1
CELLS_AT_MOST = 1 << 20
"""Cells of one side of an equation; beyond, its atoms are frozen."""


def find_orbits(equations: Sequence[Equation]) -> dict[Dim, Cells]:
    """For each free atom of the ``equations``, the number of the orbit of each index, or PINNED.

    Of each product one factor stays free: the largest with which something can be cut. Atoms that have no free index
    are frozen.
    """
    if not equations:
        return {}
    reasons: dict[Dim, Frozen] = {}
    products: list[list[Dim]] = []
    for equation in equations:
        reason = Frozen("it is cut elsewhere in a way that fits no whole factor", equation.node)
        for side in (equation.left, equation.right):
            products += _products_of_several(side, reason)
            reasons.update((atom, reason) for atom in atoms(side))
    reasons = {atom: reason for atom, reason in reasons.items() if atom.frozen is None}
    given_up: set[Dim] = set()
    while True:
        others = {atom for _, *rest in products for factor in rest for atom in atoms(factor)}
        orbits = _orbits(equations, [atom for atom in reasons if atom not in others | given_up])
        stuck = [each for each in products if len(each) > 1 and orbits.keys().isdisjoint(atoms(each[0]))]
        if not stuck:
            break
        for each in stuck:
            given_up.update(atoms(each.pop(0)))
    for atom in reasons.keys() - orbits.keys():
        freeze(atom, reasons[atom])
    return orbits


def _products_of_several(dim: Dim, reason: Frozen) -> Iterator[list[Dim]]:
    """The free factors of each product that has more than one, the largest first."""
    dim = dim.root()
    if dim.size > CELLS_AT_MOST:
        freeze(dim, reason)
    if dim.kind == "product":
        free = [factor for factor in factors(dim) if not is_frozen(factor)]
        if len(free) > 1:
            yield sorted(free, key=lambda factor: -factor.size)
    for part in dim.parts:
        yield from _products_of_several(part, reason)


def _orbits(equations: Iterable[Equation], free: Sequence[Dim]) -> dict[Dim, Cells]:
    """Of those ``free`` atoms that have an index which can go."""
    starts = dict(zip(free, np.cumsum([0, *(atom.size for atom in free)]), strict=False))
    ends = [
        (_cells(left, starts), _cells(right, starts))
        for left, right, _ in equations
        if not (is_frozen(left) and is_frozen(right))
    ]
    orbit = _joined(ends, sum(atom.size for atom in free))
    orbits = {atom: orbit[start : start + atom.size] for atom, start in starts.items()}
    whole = [int(cells[0]) for cells in orbits.values() if (cells == cells[0]).all()]  # an atom would lose all it has
    orbits = {atom: np.where(np.isin(cells, whole), PINNED, cells) for atom, cells in orbits.items()}
    return {atom: cells for atom, cells in orbits.items() if (cells != PINNED).any()}


def _cells(dim: Dim, starts: dict[Dim, int]) -> Cells:
    """The cell at each index of ``dim``."""
    dim = dim.root()
    if dim.kind == "sum":
        return np.concatenate([_cells(part, starts) for part in dim.parts])
    if dim.kind == "atom":
        return np.arange(starts[dim], starts[dim] + dim.size) if dim in starts else np.full(dim.size, PINNED)
    cells = np.full(1, PINNED)
    for part in dim.parts:  # at most one factor is free: the cell is its
        cells = np.maximum(cells[:, None], _cells(part, starts)[None, :]).reshape(-1)
    return cells


def _joined(ends: Iterable[tuple[Cells, Cells]], count: int) -> Cells:
    """The orbit of each cell; PINNED for those that face a pinned index somewhere."""
    from scipy.sparse import coo_array  # 0.2 s and 20 MB that most models never need
    from scipy.sparse.csgraph import connected_components

    listed = [*ends]
    left = np.concatenate([np.empty(0, np.int64), *(left for left, _ in listed)])
    right = np.concatenate([np.empty(0, np.int64), *(right for _, right in listed)])
    left, right = np.where(left == PINNED, count, left), np.where(right == PINNED, count, right)
    edges = coo_array((np.ones(len(left), bool), (left, right)), shape=(count + 1, count + 1))
    orbit = connected_components(edges, directed=False)[1].astype(np.int64)
    return np.where(orbit == orbit[count], PINNED, orbit)[:count]
