"""What a dimension of a tensor is made of: an atom, a product of others (row-major), or a sum of segments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx


@dataclass(frozen=True)
class Frozen:
    """Why the indices of a dimension have to stay, and the node that asks for it."""

    why: str
    node: fx.Node | None = None


class Dim:
    """The type of a dimension. Dims that turn out equal are linked: ask ``root`` before looking at the fields.

    An atom has no inner structure (yet). A product of heads and head width, or of channels and pixels after a
    flatten, runs row-major. A sum is what ``cat`` makes. Sizes are those of the traced Program.
    """

    __slots__ = ("frozen", "kind", "parts", "size", "up")

    def __init__(
        self,
        size: int,
        kind: Literal["atom", "product", "sum"] = "atom",
        parts: Sequence[Dim] = (),
        frozen: Frozen | None = None,
    ) -> None:
        self.size = size
        self.kind = kind
        self.parts = tuple(parts)
        self.frozen = frozen
        """Of an atom: why it has to stay as it is."""
        self.up: Dim | None = None

    def root(self) -> Dim:
        root = self
        while root.up is not None:
            root = root.up
        node = self
        while node.up is not None:
            node.up, node = root, node.up
        root.up = None
        return root

    def __repr__(self) -> str:
        dim = self.root()
        if dim.kind == "atom":
            return f"{dim.size}{'!' if dim.frozen else ''}"
        return f"({(' x ' if dim.kind == 'product' else ' + ').join(map(repr, dim.parts))})"


def product(parts: Iterable[Dim]) -> Dim:
    """The row-major product of ``parts``, outermost first; the one part itself if the others have size 1."""
    listed = [factor for part in parts for factor in factors(part)]
    if not listed:
        return Dim(1)
    return listed[0] if len(listed) == 1 else Dim(math.prod(part.size for part in listed), "product", listed)


def concatenation(parts: Iterable[Dim]) -> Dim:
    """``parts`` one behind the other; the one part itself if the others are empty."""
    listed = [part.root() for part in parts if part.size]
    if not listed:
        return Dim(0)
    return listed[0] if len(listed) == 1 else Dim(sum(part.size for part in listed), "sum", listed)


def factors(dim: Dim) -> list[Dim]:
    """What ``dim`` is a product of, outermost first, flat, without size 1."""
    return [factor for factor in _parts(dim, "product") if factor.size != 1]


def terms(dim: Dim) -> list[Dim]:
    """What ``dim`` is a sum of, flat. A product with a sum outermost distributes: (a + b) x c = a x c + b x c."""
    return [term for part in _parts(dim, "sum") for term in _distributed(part)]


def _distributed(dim: Dim) -> list[Dim]:
    if dim.kind == "product":
        head, *tail = factors(dim)
        if head.kind == "sum":
            return [product([term, *tail]) for term in terms(head)]
    return [dim]


def atoms(dim: Dim) -> list[Dim]:
    """The atoms in ``dim``, from left to right; one that occurs twice comes twice."""
    return _parts(dim, "product", "sum")


def _parts(dim: Dim, *kinds: str) -> list[Dim]:
    """What ``dim`` is put together from by these ``kinds``, from left to right, however deep they are nested."""
    found: list[Dim] = []
    waiting = [dim]
    while waiting:
        dim = waiting.pop().root()
        if dim.kind in kinds:
            waiting += reversed(dim.parts)
        else:
            found.append(dim)
    return found


def freeze(dim: Dim, reason: Frozen) -> None:
    """Every index of ``dim`` has to stay. The first reason is kept."""
    for atom in atoms(dim):
        if atom.frozen is None:
            atom.frozen = reason


def is_frozen(dim: Dim) -> bool:
    return all(atom.frozen is not None or atom.size == 1 for atom in atoms(dim))
