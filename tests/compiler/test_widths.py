"""What a cut Program costs, known before it is cut."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from planish.compiler.cost import totals
from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.groups import Coupling, Group, couple
from planish.compiler.coupling.sizes import Left
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace
from planish.compiler.widths import Widths
from tests.compiler.coupling.nets import nets

NETS = {family.name: family for family in nets()}


def coupled(name: str) -> Coupling:
    torch.manual_seed(0)
    return couple(trace(NETS[name].build().eval(), NETS[name].inputs(2)))


def some_units(coupling: Coupling, seed: int) -> dict[Group, list[int]]:
    """Random units of each group, such that no atom loses its last index."""
    draw = random.Random(seed)
    removed = {}
    for group in coupling.groups:
        units = draw.sample(range(group.width), draw.randrange(group.width))
        while any(all(unit in units for unit in cells.tolist()) for cells in group.units.values()):
            units.pop()
        removed[group] = units
    return removed


def left_of(removed: dict[Group, list[int]]) -> Left:
    """How many indices of each atom belong to no removed unit, counted one by one."""
    return {
        atom: sum(unit not in units for unit in cells.tolist())
        for group, units in removed.items()
        for atom, cells in group.units.items()
    }


@pytest.mark.parametrize("name", NETS)
def test_costs_are_those_of_the_program_once_it_is_cut(name: str) -> None:
    coupling = coupled(name)
    widths = Widths(coupling, batch=3)
    for seed in range(3):
        removed = some_units(coupling, seed)
        left, expected = left_of(removed), totals(cut(coupling, removed), batch=3)
        assert (widths.macs(left), widths.parameters(left)) == (expected.macs, expected.parameters)


def test_nothing_removed_costs_the_whole() -> None:
    coupling = coupled("LSTM of two layers and directions")
    widths, expected = Widths(coupling), totals(coupling.program)
    assert (widths.macs({}), widths.parameters({})) == (expected.macs, expected.parameters)


def test_a_group_governs_the_layers_that_write_and_read_it() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    coupling = couple(trace(model.eval(), Inputs((torch.randn(2, 4),))))
    widths = Widths(coupling)
    first, second = coupling.groups
    assert widths.macs({}, widths.governed(first)) == 4 * 6 + 6 * 8
    assert widths.macs({}, widths.governed(second)) == 6 * 8 + 8 * 2
