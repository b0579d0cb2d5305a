"""Equal dimensions: unification, as in type inference, where one side refines the structure of the other.

    atom = anything         the atom becomes it
    product = product       cut both at every common boundary, innermost first; each piece is an equation
    sum = anything          equal heads are an equation; of unequal ones the longer is split

What cannot be decided yet is deferred and tried again at the end: later equations may have refined it. What even
then relates two dimensions in no factor-wise way is left to ``orbits``, index by index.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import fx

from planish.compiler.coupling.dims import (
    Dim,
    Frozen,
    atoms,
    concatenation,
    factors,
    freeze,
    is_frozen,
    product,
    terms,
)


class Equation(NamedTuple):
    left: Dim
    right: Dim
    node: fx.Node | None
    """Where it comes from."""


class Equations:
    """Makes dimensions equal, as far as it can at once; ``deferred`` are the equations it could not decide."""

    def __init__(self) -> None:
        self.deferred: list[Equation] = []
        self.node: fx.Node | None = None
        """Where the equations come from that are asked for now."""
        self._links = 0

    def unify(self, left: Dim, right: Dim) -> bool:
        """Make two dimensions equal. False: it waits in ``deferred``, at least in part."""
        left, right = left.root(), right.root()
        if left is right:
            return True
        if left.size != right.size:
            mismatch = Frozen(f"sizes {left.size} and {right.size} meet", self.node)
            freeze(left, mismatch)
            freeze(right, mismatch)
            return True
        if left.size == 0:  # nothing tells its factors apart: a size computed from two inputs of sizes unknown
            empty = Frozen("its size is 0 with the sizes that stand in for those of the inputs", self.node)
            freeze(left, empty)
            freeze(right, empty)
            return True
        if left.size == 1:  # what is broadcast couples nothing
            return True
        if right.kind == "atom":
            left, right = right, left
        if left.kind == "atom":
            if right.kind != "atom" and _occurs(left, [right]):
                return self._defer(left, right)
            self._link(left, right)
            return True
        both_products = left.kind == right.kind == "product"
        done = self._unify_factors(factors(left), factors(right)) if both_products else self._unify_terms(left, right)
        left, right = left.root(), right.root()
        if done and left is not right:  # a sum becomes the product, which says more: a x c + b x c = (a + b) x c
            self._link(*((right, left) if right.kind == "sum" else (left, right)))
        return done

    def solve(self) -> None:
        """Try what was deferred again, until nothing more comes of it."""
        links = -1
        while self.deferred and links != self._links:
            links = self._links
            waiting, self.deferred = self.deferred, []
            for left, right, self.node in waiting:
                if not (is_frozen(left) and is_frozen(right)):
                    self.unify(left, right)

    def _defer(self, left: Dim, right: Dim) -> bool:
        self.deferred.append(Equation(left, right, self.node))
        return False

    def _link(self, dim: Dim, to: Dim) -> None:
        if dim.frozen is not None:
            freeze(to, dim.frozen)
        dim.up = to
        self._links += 1

    # ------------------------------------------------------------------ products

    def _unify_factors(self, left: list[Dim], right: list[Dim]) -> bool:
        return all([self._unify_pieces(*pieces) for pieces in _between_common_boundaries(left, right)])

    def _unify_pieces(self, left: list[Dim], right: list[Dim]) -> bool:
        now_left, now_right = _flat(left), _flat(right)
        if now_left != left or now_right != right:  # refined meanwhile, by the piece before
            return self._unify_factors(now_left, now_right)
        if len(left) == 1 or len(right) == 1:
            return self.unify(product(left), product(right))
        boundaries = sorted({*_boundaries(left), *_boundaries(right)})
        if any(outer % inner for inner, outer in itertools.pairwise(boundaries)):
            return self._defer(product(left), product(right))
        if all([self._refine(side, boundaries) for side in (left, right)]):
            return self._unify_factors(_flat(left), _flat(right))
        return self._defer(product(left), product(right))

    def _refine(self, side: Sequence[Dim], boundaries: Sequence[int]) -> bool:
        """Make every factor that lies across a boundary a product of what lies on either side of it."""
        done, outer = True, math.prod(factor.size for factor in side)
        for factor in side:
            inner = outer // factor.size
            inside = [inner, *(boundary for boundary in boundaries if inner < boundary < outer), outer]
            if len(inside) > 2:
                pieces = [Dim(high // low) for low, high in itertools.pairwise(inside)]
                done = self.unify(factor, product(reversed(pieces))) and done
            outer = inner
        return done

    # ------------------------------------------------------------------ sums

    def _unify_terms(self, left: Dim, right: Dim) -> bool:
        ours, theirs = deque(terms(left)), deque(terms(right))
        done = True
        while ours:
            first, second = ours[0], theirs[0]
            if first.size == second.size:
                done = self.unify(ours.popleft(), theirs.popleft()) and done
                continue
            longer, shorter = (ours, theirs) if first.size > second.size else (theirs, ours)
            atom = longer[0].root()
            if atom.kind == "atom" and not _occurs(atom, shorter):
                _gather(shorter, atom.size)
                if shorter[0].size == atom.size:
                    continue
            halves = self._split(longer[0], shorter[0].size, shorter)
            if halves is None:
                return self._defer(concatenation(ours), concatenation(theirs))
            longer.popleft()
            longer.extendleft(reversed(halves))
        return done

    def _split(self, dim: Dim, size: int, other_side: Sequence[Dim]) -> tuple[Dim, Dim] | None:
        """``dim`` as its first ``size`` indices and the rest, if it comes apart there."""
        head, *tail = factors(dim)
        inner = math.prod(factor.size for factor in tail)
        if size % inner:
            return None
        if head.kind == "sum":  # a sum of equal terms, one of which is to be split
            parts = [product([term, *tail]) for term in terms(head)]
            return self._split_sum(parts, size, other_side)
        if _occurs(head, other_side):
            return None
        halves = Dim(size // inner), Dim(head.size - size // inner)
        self._link(head, concatenation(halves))
        return product([halves[0], *tail]), product([halves[1], *tail])

    def _split_sum(self, parts: list[Dim], size: int, other_side: Sequence[Dim]) -> tuple[Dim, Dim] | None:
        for index, end in enumerate(itertools.accumulate(part.size for part in parts)):
            if end == size:
                return concatenation(parts[: index + 1]), concatenation(parts[index + 1 :])
            if end > size:
                halves = self._split(parts[index], size - end + parts[index].size, other_side)
                if halves is None:
                    return None
                return concatenation([*parts[:index], halves[0]]), concatenation([halves[1], *parts[index + 1 :]])
        return None


def _flat(side: Sequence[Dim]) -> list[Dim]:
    return [factor for dim in side for factor in factors(dim)]


def _boundaries(side: Sequence[Dim]) -> Iterator[int]:
    """What lies to the right of each factor, and the whole: 1 excluded."""
    return itertools.accumulate((factor.size for factor in reversed(side)), lambda inner, size: inner * size)


def _between_common_boundaries(left: Sequence[Dim], right: Sequence[Dim]) -> Iterator[tuple[list[Dim], list[Dim]]]:
    """Both sides in the shortest pieces of equal size, innermost first."""
    piece_left: list[Dim] = []
    piece_right: list[Dim] = []
    ours, theirs = [*left], [*right]
    inner_left = inner_right = 1
    while ours or theirs:
        if theirs and (inner_right < inner_left or not ours):
            piece_right.insert(0, theirs.pop())
            inner_right *= piece_right[0].size
        else:
            piece_left.insert(0, ours.pop())
            inner_left *= piece_left[0].size
        if inner_left == inner_right:
            yield piece_left, piece_right
            piece_left, piece_right = [], []


def _occurs(atom: Dim, dims: Sequence[Dim]) -> bool:
    return any(atom in atoms(dim) for dim in dims)


def _gather(side: deque[Dim], room: int) -> None:
    """As many of the first terms as there is ``room`` for become one."""
    gathered: list[Dim] = []
    while side and side[0].size <= room:
        gathered.append(side.popleft())
        room -= gathered[-1].size
    side.appendleft(concatenation(gathered))
