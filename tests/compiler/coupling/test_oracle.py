"""``cut`` against the masked reference, value by value in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compiler.coupling.nets import nets
from tests.compiler.coupling.nets_composed import composed
from tests.compiler.coupling.nets_indexing import indexing
from tests.compiler.coupling.oracle import coupled, judge, some_of_all, some_units

NETS = {family.name: family for family in [*nets(), *indexing(), *composed()]}


@pytest.mark.parametrize("name", NETS)
def test_a_cut_computes_what_is_left(name: str) -> None:
    coupling, inputs = coupled(NETS[name])
    assert coupling.groups
    assert not coupling.not_understood
    for seed in range(3):
        verdict = judge(coupling, some_of_all(coupling, np.random.default_rng(seed)), inputs, every_value=True)
        assert verdict.error < 1e-10, verdict
        assert not verdict.where, verdict.where
        assert verdict.moved > 1e-4


@pytest.mark.parametrize("name", NETS)
def test_each_group_can_be_cut_alone(name: str) -> None:
    coupling, inputs = coupled(NETS[name])
    for group in coupling.groups:
        verdict = judge(coupling, {group: some_units(group, np.random.default_rng(0))}, inputs)
        assert verdict.error < 1e-10, (group.name, verdict)
        assert verdict.moved > 1e-6, (group.name, verdict)


@pytest.mark.parametrize("name", NETS)
def test_all_groups_can_be_cut_down_to_one_unit(name: str) -> None:
    coupling, inputs = coupled(NETS[name])
    removed = {group: some_units(group, np.random.default_rng(0), share=1) for group in coupling.groups}
    assert judge(coupling, removed, inputs).error < 1e-10
