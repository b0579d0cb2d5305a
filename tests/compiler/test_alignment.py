"""Widths that the device asks for, on the axes that it computes along."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.compiler.alignment import Alignment, asked_alignment, curves_of, find_axes
from planish.compiler.coupling.groups import Coupling, couple
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.targets import find_backend
from planish.compiler.trace import trace
from planish.compiler.widths import Widths


class Attention(nn.Module):
    def __init__(self, heads: int, width: int):
        super().__init__()
        self.heads = heads
        self.project, self.mix = nn.Linear(24, 3 * heads * width), nn.Linear(heads * width, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).reshape(x.shape[0], x.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.mix(mixed).relu())


def grouped(groups: int, each: int) -> nn.Module:
    width = groups * each
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, groups=groups), nn.Conv2d(width, 4, 1))


def of(model: nn.Module, *inputs: Tensor) -> tuple[Coupling, Widths]:
    coupling = couple(trace(model.eval(), Inputs(inputs)))
    return coupling, Widths(coupling)


def choices(coupling: Coupling, widths: Widths, multiple: int, minimum: int = 1, **left: int) -> dict[str, list[int]]:
    """By group name what may be kept, with groups in ``left`` at other widths."""
    alignment = Alignment(find_axes(widths), multiple, minimum)
    curves = {group: curves_of(group, np.arange(group.width)) for group in coupling.groups}
    at = {atom: int(curve[left[g.name]]) for g in curves if g.name in left for atom, curve in curves[g].items()}
    return {group.name: alignment.choices(group, curves[group], at).tolist() for group in coupling.groups}


def test_a_plain_width_is_cut_to_multiples_or_not_at_all() -> None:
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3))
    assert choices(*of(model, torch.randn(2, 4)), 8) == {"0": [8, 16, 20]}


def test_what_has_to_be_a_multiple_is_heads_times_their_width() -> None:
    coupling, widths = of(Attention(6, 8), torch.randn(2, 5, 24))
    found = choices(coupling, widths, 8)
    assert found["project"] == [1, 2, 3, 4, 5, 6]  # heads: any number of 8 is a multiple
    assert found["project#2"] == [8]  # widths of a head are axes of the attention itself
    assert choices(coupling, widths, 4)["project#2"] == [4, 8]


def test_fewer_groups_are_allowed_only_where_groups_times_channels_still_fit() -> None:
    coupling, widths = of(grouped(8, 6), torch.randn(2, 3, 8, 8))
    (groups,) = (group.name for group in coupling.groups if group.width == 8)
    assert choices(coupling, widths, 4)[groups] == [2, 4, 6, 8]  # 6 channels in each: pairs of groups are 12
    narrower = {group.name: 4 for group in coupling.groups if group.width == 6}
    assert choices(coupling, widths, 4, **narrower)[groups] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_an_axis_narrower_than_one_multiple_stays() -> None:
    coupling, widths = of(grouped(8, 2), torch.randn(2, 3, 8, 8))
    found = choices(coupling, widths, 4)
    assert [found[group.name] for group in coupling.groups if group.width == 8] == [[2, 4, 6, 8]]
    into, out = (found[group.name] for group in coupling.groups if group.width == 2)
    assert (into, out) == ([2], [1, 2])  # what a group reads is an axis of the weight, what it writes is part of 16


def test_the_parts_of_a_concatenation_are_aligned_one_by_one() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(4, 8), nn.Linear(20, 3)

        def forward(self, x: Tensor) -> Any:
            return self.c(torch.cat([self.a(x), self.b(x)], -1))

    assert choices(*of(Cat(), torch.randn(2, 4)), 4) == {"a": [4, 8, 12], "b": [4, 8]}


def test_no_axis_becomes_narrower_than_the_minimum() -> None:
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    assert choices(*of(model, torch.randn(2, 4)), 1, minimum=10) == {"0": [10, 11, 12]}


@pytest.mark.parametrize(("target", "integers", "floats"), [("x86-avx512-vnni", 16, 16), ("jetson-agx-orin-64", 32, 8)])
def test_the_alignment_is_that_of_the_dtype_to_come(target: str, integers: int, floats: int) -> None:
    profile = registry().find_profile(target)
    scheme = find_backend(profile, None)[0].scheme(profile)
    assert scheme is not None
    assert asked_alignment(profile, scheme) == integers
    assert asked_alignment(profile, None) == floats
