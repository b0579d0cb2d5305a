"""Atoms, products and sums."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from planish.compiler.coupling.dims import Dim, Frozen, atoms, concatenation, factors, freeze, is_frozen, product, terms

REASON = Frozen("because")


def dims() -> st.SearchStrategy[Dim]:
    sizes = st.integers(1, 5).map(Dim)
    return st.recursive(
        sizes, lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(lambda parts: st.sampled_from(
            [product(parts), concatenation(parts)])), max_leaves=6
    )  # fmt: skip


def test_a_product_of_one_is_that_one() -> None:
    eight = Dim(8)
    assert product([eight]) is eight
    assert product([Dim(1), eight, Dim(1)]) is eight
    assert product([]).size == 1


def test_a_sum_of_one_is_that_one() -> None:
    eight = Dim(8)
    assert concatenation([Dim(0), eight]) is eight
    assert concatenation([]).size == 0


def test_products_within_products_are_flat() -> None:
    two, three, five = Dim(2), Dim(3), Dim(5)
    assert factors(product([product([two, three]), five])) == [two, three, five]


def test_a_sum_distributes_over_the_factors_behind_it() -> None:
    two, three, four = Dim(2), Dim(3), Dim(4)
    parts = terms(product([concatenation([two, three]), four]))
    assert [factors(part) for part in parts] == [[two, four], [three, four]]


def test_a_sum_behind_a_factor_does_not_distribute() -> None:
    whole = product([Dim(4), concatenation([Dim(2), Dim(3)])])
    assert terms(whole) == [whole]


def test_linked_dimensions_have_one_root() -> None:
    first, second, third = Dim(8), Dim(8), Dim(8)
    first.up, second.up = second, third
    assert first.root() is third
    assert first.up is third, "the way there was shortened"


def test_freezing_reaches_every_atom_and_keeps_the_first_reason() -> None:
    two, three = Dim(2), Dim(3, frozen=Frozen("earlier"))
    whole = product([two, concatenation([three, Dim(1)])])
    assert not is_frozen(whole)
    freeze(whole, REASON)
    assert is_frozen(whole)
    assert two.frozen == REASON
    assert three.frozen == Frozen("earlier")


def test_size_one_counts_as_frozen() -> None:
    assert is_frozen(Dim(1))
    assert not is_frozen(Dim(2))


@given(dims())
def test_factors_multiply_and_terms_add_up_to_the_size(dim: Dim) -> None:
    assert math.prod(factor.size for factor in factors(dim)) == dim.size
    assert sum(term.size for term in terms(dim)) == dim.size


@given(dims())
def test_factors_are_no_products_and_terms_no_sums(dim: Dim) -> None:
    assert all(factor.kind != "product" and factor.size != 1 for factor in factors(dim))
    assert all(term.kind != "sum" for term in terms(dim))


@given(dims())
def test_atoms_have_no_parts(dim: Dim) -> None:
    assert all(atom.kind == "atom" and not atom.parts for atom in atoms(dim))
