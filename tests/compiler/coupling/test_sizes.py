"""Sizes that the graph computes, that the data decides, and memory that is read as it lies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from planish.compiler.cost import totals
from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.groups import couple
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.shapes import propagate
from planish.compiler.trace import trace
from tests.backends.to_onnx.family_base import Function


def traced(forward: Any, *inputs: Tensor, **layers: nn.Module) -> Program:
    return trace(Function(forward, **layers).eval(), Inputs(inputs))


def test_what_is_cut_may_lie_beside_pairs_that_are_read_as_complex_numbers() -> None:
    turns = torch.polar(torch.ones(2), torch.tensor([0.3, 1.1]))

    def rotated(s: Any, x: Tensor) -> Any:
        plain, pairs = s.a(x).split([6, 4], -1)
        turned = torch.view_as_complex(pairs.reshape(*pairs.shape[:-1], -1, 2)) * turns
        return s.c(torch.cat([plain, torch.view_as_real(turned).flatten(-2)], -1))

    a, c = nn.Linear(3, 10), nn.Linear(10, 2)
    coupling = couple(traced(rotated, torch.randn(2, 5, 3), a=a, c=c))
    (group,) = [group for group in coupling.groups if group.width == 6]
    pruned = cut(coupling, {group: [2]})
    with torch.no_grad():
        c.weight[:, 2] = 0
    x = torch.randn(2, 5, 3)
    expected = Function(rotated, a=a, c=c)(x)
    torch.testing.assert_close(pruned(x), expected)


def test_a_view_of_a_batch_computed_from_two_inputs_keeps_its_heads() -> None:
    def towers(s: Any, x: Tensor, image: Tensor) -> Any:
        seen = s.a(image).repeat(x.shape[0] // image.shape[0], 1, 1)
        both = torch.cat([seen, s.e(x)], 1)
        return s.c(s.b(both).view(both.shape[0], 7, -1, 4).softmax(-1).flatten(-2))

    layers = {"a": nn.Linear(6, 8), "e": nn.Linear(3, 8), "b": nn.Linear(8, 12), "c": nn.Linear(12, 2)}
    program = traced(towers, torch.randn(2, 5, 3), torch.randn(2, 2, 6), **layers)
    assert len(program.dynamic_axes) == 2
    coupling = couple(program)
    narrow = cut(coupling, {group: range(1, group.width) for group in coupling.groups})
    assert narrow(torch.randn(4, 5, 3), torch.randn(2, 2, 6)).shape == (4, 7, 2)
    assert len(narrow.state_dict()["b.weight"]) == 12  # the softmax needs the width of each head


def test_sizes_that_the_data_decides_are_propagated_again_and_counted() -> None:
    layers = {"a": nn.Linear(3, 8), "b": nn.Linear(8, 4), "c": nn.Linear(4, 2)}
    program = traced(lambda s, x: s.c(s.b(s.a(x))[x[:, 0] > 0]).sum(0), torch.randn(4, 3), **layers)
    propagate(program)
    coupling = couple(program)
    (group,) = [group for group in coupling.groups if group.width == 8]
    half = cut(coupling, {group: range(4)})
    assert half(torch.randn(6, 3)).shape == (2,)
    assert totals(program).macs == 3 * 8 + 8 * 4 + 4 * 2
    assert totals(half).macs == 3 * 4 + 4 * 4 + 4 * 2
