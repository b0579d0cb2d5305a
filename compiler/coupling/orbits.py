"""What no factor-wise equation could say, said index by index.

A group norm over a concatenation whose parts do not end at group boundaries couples single channels of one with
single channels of the other. Each index of a free atom is a cell; cells that have to go together are an orbit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from planish.compiler.coupling.dims import Dim, Frozen, atoms, factors, freeze, is_frozen
from planish.compiler.coupling.equations import Equation

Cells = np.ndarray[tuple[int], np.dtype[np.int64]]
PINNED = -1
CELLS_AT_MOST = 1 << 20
"""Cells of one side of an equation; beyond, its atoms are frozen."""


def find_orbits(equations: Sequence[Equation]) -> dict[Dim, Cells]:
    """For each free atom of the ``equations``, the number of the orbit of each index, or PINNED.

    Atoms that have no free index are frozen.
    """
    if not equations:
        return {}
    of_atom: dict[Dim, Frozen] = {}
    for equation in equations:
        reason = Frozen("it is cut elsewhere in a way that fits no whole factor", equation.node)
        for side in (equation.left, equation.right):
            _free_one_factor_each(side, reason)
            of_atom.update((atom, reason) for atom in atoms(side) if atom.frozen is None)
    free = [atom for atom in of_atom if atom.frozen is None]
    starts = dict(zip(free, np.cumsum([0, *(atom.size for atom in free)]), strict=False))
    count = sum(atom.size for atom in free)
    ends: list[tuple[Cells, Cells]] = []
    for left, right, _ in equations:
        if not (is_frozen(left) and is_frozen(right)):
            ends.append((_cells(left, starts), _cells(right, starts)))
    orbit = _joined(ends, count)
    orbits = {atom: orbit[starts[atom] : starts[atom] + atom.size] for atom in free}
    for atom, cells in orbits.items():
        if (cells == PINNED).all():
            freeze(atom, of_atom[atom])
    return {atom: cells for atom, cells in orbits.items() if atom.frozen is None}


def _free_one_factor_each(dim: Dim, reason: Frozen) -> None:
    """Of each product keep the largest free factor; the others are frozen."""
    dim = dim.root()
    if dim.size > CELLS_AT_MOST:
        freeze(dim, reason)
    if dim.kind == "product":
        free = [factor for factor in factors(dim) if not is_frozen(factor)]
        for factor in sorted(free, key=lambda factor: -factor.size)[1:]:
            freeze(factor, reason)
    for part in dim.parts:
        _free_one_factor_each(part, reason)


def _cells(dim: Dim, starts: dict[Dim, int]) -> Cells:
    """The cell at each index of ``dim``."""
    dim = dim.root()
    if dim.kind == "sum":
        return np.concatenate([_cells(part, starts) for part in dim.parts])
    if dim.kind == "atom":
        free = dim in starts and dim.frozen is None
        return np.arange(starts[dim], starts[dim] + dim.size) if free else np.full(dim.size, PINNED)
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
