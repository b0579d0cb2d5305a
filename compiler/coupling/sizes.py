"""The sizes of dimensions of which something is gone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from planish.compiler.coupling.dims import Dim

Left = Mapping[Dim, int]
"""Atom -> how many of its indices are left; all, where it is missing."""


class Sizes:
    """The sizes of dimensions with what is ``left`` of their atoms, each computed once."""

    def __init__(self, left: Left) -> None:
        self._sizes: dict[Dim, int] = {atom.root(): size for atom, size in left.items()}

    def of(self, dim: Dim) -> int:
        dim = dim.root()
        size = self._sizes.get(dim)
        if size is None:
            parts = [self.of(part) for part in dim.parts]
            size = {"atom": dim.size, "sum": sum(parts), "product": math.prod(parts)}[dim.kind]
            self._sizes[dim] = size
        return size
