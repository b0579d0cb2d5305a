"""Index by index: what the equations left open."""

from __future__ import annotations

from planish.compiler.coupling.dims import Dim, Frozen, concatenation, product
from planish.compiler.coupling.equations import Equation
from planish.compiler.coupling.orbits import PINNED, find_orbits

REASON = Frozen("because")


def test_nothing_open_gives_no_orbits() -> None:
    assert find_orbits([]) == {}


def test_indices_that_face_each_other_share_an_orbit() -> None:
    """4 groups of 4 over 10 + 6 channels: a group that goes takes its channels of either part along."""
    groups, inner, first, second = Dim(4), Dim(4, frozen=REASON), Dim(10), Dim(6)
    orbits = find_orbits([Equation(product([groups, inner]), concatenation([first, second]), None)])
    a, b, c, d = orbits[groups].tolist()
    assert len({a, b, c, d}) == 4
    assert orbits[first].tolist() == [a] * 4 + [b] * 4 + [c] * 2
    assert orbits[second].tolist() == [c] * 2 + [d] * 4


def test_an_index_that_faces_a_frozen_one_is_pinned() -> None:
    free, frozen, rest = Dim(4), Dim(2, frozen=REASON), Dim(2)
    orbits = find_orbits([Equation(free, concatenation([frozen, rest]), None)])
    assert orbits[free].tolist()[:2] == [PINNED, PINNED]
    assert orbits[free].tolist()[2:] == orbits[rest].tolist()


def test_an_atom_whose_every_index_is_pinned_is_frozen() -> None:
    free = Dim(4)
    assert find_orbits([Equation(free, concatenation([Dim(1, frozen=REASON), Dim(3, frozen=REASON)]), None)]) == {}
    assert free.frozen is not None


def test_of_a_product_the_largest_factor_stays_free() -> None:
    small, large = Dim(2), Dim(6)
    orbits = find_orbits([Equation(product([small, large]), concatenation([Dim(5), Dim(7)]), None)])
    assert small.frozen is not None
    assert large in orbits


def test_orbits_go_on_from_one_equation_to_the_next() -> None:
    first, second, third = Dim(4), Dim(4), Dim(4)
    orbits = find_orbits([Equation(first, second, None), Equation(second, third, None)])
    assert orbits[first].tolist() == orbits[second].tolist() == orbits[third].tolist()


def test_a_rotation_by_one_joins_all_indices_and_so_they_stay() -> None:
    """x = (1 + 3) and x = (3 + 1) with the same parts: every index faces its neighbour."""
    one, three = Dim(1), Dim(3)
    assert not find_orbits([Equation(concatenation([one, three]), concatenation([three, one]), None)])
    assert one.frozen is not None and three.frozen is not None


def test_the_largest_factor_stays_free_with_which_something_can_be_cut() -> None:
    """4 x 2 rotated by one pair: all pairs face each other, and what lies in a pair faces itself."""
    pairs, inside = Dim(4), Dim(2)
    whole, first = product([pairs, inside]), Dim(2)
    equations = [Equation(whole, concatenation([first, Dim(6)]), None)]
    equations.append(Equation(whole, concatenation([equations[0].right.parts[1], first]), None))
    orbits = find_orbits(equations)
    assert pairs.frozen is not None
    assert orbits[inside][0] != orbits[inside][1]
