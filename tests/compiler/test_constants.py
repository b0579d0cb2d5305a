from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from planish.compiler.constants import Constants
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.trace import trace

aten = torch.ops.aten


def the(program: Program, target: Callable[..., Any]) -> fx.Node:
    (node,) = program.calls(target)
    return node


class Slopes(nn.Module):
    """A table from ``arange``, noise, and a learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(4, dtype=torch.float32)
        table = (steps + steps.flip(0)).exp() * self.factor
        return x * table + torch.rand(4)


def test_what_depends_on_no_input_has_the_value_that_running_gives_it() -> None:
    program = trace(Slopes().eval(), Inputs((torch.randn(2, 4),)))
    constants = Constants(program)
    seen: dict[fx.Node, object] = {}

    class Seeing(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            seen[n] = super().run_node(n)
            return seen[n]

    Seeing(program.graph_module).run(torch.randn(2, 4), enable_io_processing=False)
    found = [node for node in seen if node in constants]
    assert {aten.flip.default, aten.exp.default, aten.mul.Tensor} <= {node.target for node in found}
    for node in found:
        value = constants.value(node)
        assert isinstance(value, Tensor) and torch.equal(value, torch.as_tensor(seen[node])), node.name


def test_random_numbers_and_what_reads_inputs_are_no_constants() -> None:
    program = trace(Slopes().eval(), Inputs((torch.randn(2, 4),)))
    constants = Constants(program)
    assert the(program, aten.rand.default) not in constants
    assert not any(node in constants for node in program.placeholders)
    assert program.output.all_input_nodes[0] not in constants


def test_what_is_computed_from_a_node_that_varies_is_no_constant() -> None:
    program = trace(Slopes().eval(), Inputs((torch.randn(2, 4),)))
    exponent = the(program, aten.exp.default)
    without = Constants(program, lambda node: node is exponent)
    assert exponent in Constants(program)
    assert exponent not in without
    assert not any(user in without for user in exponent.users)


def test_a_chain_in_which_each_step_reads_the_last_one_twice_is_computed_in_linear_time() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.ones(1)
            for _ in range(300):
                y = (y + y) / 2
            return x + y

    program = trace(Doubling(), Inputs((torch.randn(2, 1),)))
    constants = Constants(program)
    last = [node for node in program.calls() if node in constants][-1]
    assert torch.equal(constants.value(last), torch.ones(1))
