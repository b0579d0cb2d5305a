from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from planish.compiler.errors import VerificationError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, set_tensor
from planish.compiler.rules import RULES, is_allowed, verify
from planish.compiler.trace import trace
from tests.compiler.models import NAMES, Cnn, case

aten = torch.ops.aten


@pytest.fixture
def program() -> Program:
    return trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8))).fork()


@pytest.mark.parametrize("name", NAMES)
def test_what_tracing_makes_fulfils_every_rule(name: str) -> None:
    found = case(name)
    program = trace(found.model, found.inputs)
    assert [broken for rule in RULES for broken in rule(program)] == []


def use_before_definition(program: Program) -> None:
    first, second = program.calls(aten.conv2d.default)
    first.update_arg(0, second)


def call_a_method(program: Program) -> None:
    (head,) = program.calls(aten.linear.default)
    with program.graph.inserting_after(head):
        program.graph.call_method("relu", (head,))


def call_a_python_function(program: Program) -> None:
    (head,) = program.calls(aten.linear.default)
    with program.graph.inserting_after(head):
        program.graph.call_function(print, (head,))


def read_what_is_not_there(program: Program) -> None:
    next(node for node in program.graph.nodes if node.op == "get_attr").target = "nothing.here"


def read_what_is_no_tensor(program: Program) -> None:
    program.graph_module.setting = 3  # type: ignore[assignment]
    next(node for node in program.graph.nodes if node.op == "get_attr").target = "setting"


def give_a_weight_another_shape(program: Program) -> None:
    set_tensor(program.graph_module, "head.weight", nn.Parameter(torch.zeros(5, 9)))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (use_before_definition, "before"),
        (call_a_method, "call_method"),
        (call_a_python_function, "print"),
        (read_what_is_not_there, "nothing.here"),
        (read_what_is_no_tensor, "int"),
        (give_a_weight_another_shape, "does not run"),
    ],
)
def test_a_broken_program_is_told_with_the_step_that_broke_it(
    program: Program, harm: Callable[[Program], None], told: str
) -> None:
    verify(program, "tracing")
    harm(program)
    with pytest.raises(VerificationError, match=f"after harm.*{told}"):
        verify(program, "harm")


def test_inputs_that_are_not_those_of_the_placeholders_are_told(program: Program) -> None:
    more = replace(program, example_inputs=Inputs((torch.randn(2, 3, 8, 8), torch.randn(2))))
    with pytest.raises(VerificationError, match="1 placeholders for 2 example inputs"):
        verify(more, "a change of inputs")
    with pytest.raises(VerificationError, match="has no such axes"):
        verify(replace(program, dynamic_axes={"x": {4: "batch"}}), "a change of axes")
    with pytest.raises(VerificationError, match="has no such axes"):
        verify(replace(program, dynamic_axes={"nobody": {0: "batch"}}), "a change of axes")


def test_a_constant_that_fixes_the_batch_is_found_although_the_example_fits(program: Program) -> None:
    (reshape,) = program.calls(aten.reshape.default)
    reshape.update_arg(1, [2, 8])  # the batch of the example, in a Program whose batch is dynamic
    with pytest.raises(VerificationError):
        verify(program, "a careless pass")


@pytest.mark.parametrize(
    "target",
    [print, eval, getattr, setattr, operator.attrgetter, operator.methodcaller, torch.load, "x", None],
)
def test_functions_that_do_more_than_compute_are_not_allowed(target: object) -> None:
    assert not is_allowed(target)


def test_operators_and_arithmetic_on_sizes_are_allowed() -> None:
    assert all(map(is_allowed, (aten.conv2d.default, operator.add, operator.getitem, torch.sym_max)))
