"""Unification: what becomes equal, what is split, what has to wait."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.compiler.coupling.dims import Dim, Frozen, atoms, concatenation, factors, freeze, is_frozen, product, terms
from planish.compiler.coupling.equations import Equations

REASON = Frozen("because")


@pytest.fixture
def equations() -> Equations:
    return Equations()


def sizes(dims: list[Dim]) -> list[int]:
    return [dim.root().size for dim in dims]


def test_two_atoms_become_one(equations: Equations) -> None:
    left, right = Dim(8), Dim(8)
    assert equations.unify(left, right)
    assert left.root() is right.root()


def test_a_frozen_atom_freezes_what_it_equals(equations: Equations) -> None:
    for left, right in itertools.permutations((Dim(8, frozen=REASON), Dim(8))):
        equations.unify(left, right)
        assert left.root().frozen == REASON


def test_an_atom_becomes_the_product_that_it_equals(equations: Equations) -> None:
    heads, width, channels = Dim(4), Dim(2), Dim(8)
    equations.unify(channels, product([heads, width]))
    assert factors(channels) == [heads, width]


def test_different_sizes_freeze_both(equations: Equations) -> None:
    left, right = Dim(8), product([Dim(3), Dim(2)])
    assert equations.unify(left, right)
    assert is_frozen(left)
    assert is_frozen(right)


def test_size_one_couples_nothing(equations: Equations) -> None:
    left, right = Dim(1), Dim(1)
    equations.unify(left, right)
    assert left.root() is not right.root()


def test_products_are_equal_factor_by_factor(equations: Equations) -> None:
    first, second, third, fourth = Dim(4), Dim(6), Dim(4), Dim(6)
    equations.unify(product([first, second]), product([third, fourth]))
    assert first.root() is third.root()
    assert second.root() is fourth.root()


def test_a_factor_that_meets_two_is_their_product(equations: Equations) -> None:
    wide, inner, outer = Dim(6), Dim(3), Dim(2)
    equations.unify(product([Dim(5), wide]), product([Dim(5), outer, inner]))
    assert factors(wide) == [outer.root(), inner.root()]


def test_factors_that_overlap_are_refined(equations: Equations) -> None:
    """4 x 6 = 8 x 3, because both are 4 x 2 x 3."""
    four, six, eight, three = Dim(4), Dim(6), Dim(8), Dim(3)
    assert equations.unify(product([four, six]), product([eight, three]))
    assert sizes(factors(six)) == [2, 3]
    assert sizes(factors(eight)) == [4, 2]
    assert factors(six)[0] is factors(eight)[1]


def test_factors_without_a_common_refinement_wait(equations: Equations) -> None:
    """8 x 7 against 28 x 2: windows against merged patches."""
    left, right = product([Dim(8), Dim(7)]), product([Dim(28), Dim(2)])
    assert not equations.unify(left, right)
    assert len(equations.deferred) == 1
    equations.solve()
    assert len(equations.deferred) == 1


def test_sums_are_equal_part_by_part(equations: Equations) -> None:
    first, second, third, fourth = Dim(3), Dim(5), Dim(3), Dim(5)
    equations.unify(concatenation([first, second]), concatenation([third, fourth]))
    assert first.root() is third.root()
    assert second.root() is fourth.root()


def test_the_longer_part_is_split(equations: Equations) -> None:
    long, short = Dim(8), Dim(3)
    equations.unify(concatenation([long, Dim(2)]), concatenation([short, Dim(7)]))
    assert sizes(terms(long)) == [3, 5]
    assert terms(long)[0] is short.root()


def test_a_product_is_split_along_its_outermost_factor(equations: Equations) -> None:
    heads, width = Dim(6), Dim(4)
    assert equations.unify(product([heads, width]), concatenation([Dim(8), Dim(16)]))
    assert sizes(terms(heads)) == [2, 4]


def test_a_product_is_not_split_inside_its_inner_factor(equations: Equations) -> None:
    assert not equations.unify(product([Dim(4), Dim(4)]), concatenation([Dim(10), Dim(6)]))
    assert equations.deferred


def test_an_atom_that_would_become_a_part_of_itself_waits(equations: Equations) -> None:
    """a + b = b + a: to split a, which stands on the other side as well, would never end."""
    long, short = Dim(4), Dim(2)
    assert not equations.unify(concatenation([long, short]), concatenation([short, long]))
    assert long.root().kind == "atom"


def test_what_waits_is_solved_once_it_is_refined(equations: Equations) -> None:
    long, short = Dim(4), Dim(2)
    equations.unify(concatenation([long, short]), concatenation([short, long]))
    equations.unify(long, concatenation([Dim(2), Dim(2)]))
    equations.solve()
    assert not equations.deferred
    assert {atom.root() for atom in atoms(long)} == {short.root()}


def test_what_is_frozen_on_both_sides_need_not_wait(equations: Equations) -> None:
    equations.unify(product([Dim(8, frozen=REASON), Dim(7, frozen=REASON)]), product([Dim(28, frozen=REASON), Dim(2)]))
    assert equations.deferred
    freeze(equations.deferred[0].right, REASON)
    equations.unify(Dim(3), Dim(3))  # solve goes on as long as anything was linked
    equations.solve()
    assert not equations.deferred


@st.composite
def factorizations(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two ways to write a number as a product whose boundaries all divide each other."""
    primes = draw(st.lists(st.sampled_from([2, 3, 5]), min_size=1, max_size=5))
    ways = []
    for _ in range(2):
        cuts = sorted(draw(st.sets(st.integers(1, len(primes)), max_size=3)) | {len(primes)})
        ways.append([math.prod(primes[start:end]) for start, end in itertools.pairwise([0, *cuts])])
    return ways[0], ways[1]


@given(factorizations())
def test_products_of_one_chain_are_always_solved(ways: tuple[list[int], list[int]]) -> None:
    equations = Equations()
    left, right = (product(map(Dim, way)) for way in ways)
    assert equations.unify(left, right)
    assert [*atoms(left)] == [*atoms(right)]


@given(factorizations())
def test_it_does_not_matter_which_side_comes_first(ways: tuple[list[int], list[int]]) -> None:
    structures = []
    for order in (ways, ways[::-1]):
        equations = Equations()
        left, right = (product(map(Dim, way)) for way in order)
        equations.unify(left, right)
        structures.append([atom.size for atom in atoms(left)])
    assert structures[0] == structures[1]


@given(st.sets(st.integers(1, 15)), st.sets(st.integers(1, 15)))
def test_sums_of_atoms_are_refined_at_the_boundaries_of_both(left: set[int], right: set[int]) -> None:
    def parts(boundaries: set[int]) -> list[int]:
        return [2 * (end - start) for start, end in itertools.pairwise([0, *sorted(boundaries), 16])]

    first, second = (concatenation([Dim(size) for size in parts(each)]) for each in (left, right))
    assert Equations().unify(first, second)
    assert sizes(terms(first)) == parts(left | right)
    assert terms(first) == terms(second)
