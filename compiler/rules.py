"""The verifier: what every Program fulfils between all passes, as a list of rules."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.errors import VerificationError
from planish.compiler.program import Program, get_attribute
from planish.compiler.shapes import propagate

Rule = Callable[[Program], Iterator[str]]

SYMBOLIC_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv,
        operator.mod, operator.neg, operator.pow, operator.eq, operator.ne, operator.lt, operator.le,
        operator.gt, operator.ge, operator.and_, operator.or_, operator.not_, math.ceil, math.floor, math.trunc,
        torch.sym_int, torch.sym_float, torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_ite,
        torch.sym_sqrt, torch.sym_sum,
    }
)  # fmt: skip
"""Functions on sizes that a graph may call beside operators. None of them touches a file or runs code."""


def graph_is_well_formed(program: Program) -> Iterator[str]:
    """1. Nodes are in order, names are unique, every argument is defined before its use."""
    try:
        program.graph.lint()
    except (RuntimeError, ValueError) as failure:
        yield str(failure)


def calls_are_operators(program: Program) -> Iterator[str]:
    """2. A call is a torch operator, or arithmetic on sizes; nothing else can be lowered, or trusted."""
    for node in program.graph.nodes:
        if node.op in ("call_module", "call_method"):
            yield f"{node.name} is a {node.op}"
        elif node.op == "call_function" and not is_allowed(node.target):
            yield f"{node.name} calls {node.target}"


def attributes_are_tensors(program: Program) -> Iterator[str]:
    """3. Whatever the graph reads exists, and is a tensor or a sub-graph of a control-flow operator."""
    for node in program.graph.nodes:
        if node.op == "get_attr":
            try:
                value = get_attribute(program.graph_module, str(node.target))
            except AttributeError:
                yield f"{node.name} reads {node.target}, which does not exist"
                continue
            if not isinstance(value, (Tensor, fx.GraphModule)):
                yield f"{node.name} reads {node.target}, a {type(value).__name__}"


def inputs_fit_the_placeholders(program: Program) -> Iterator[str]:
    """4. One placeholder per leaf of the example inputs; dynamic axes name axes that exist."""
    leaves, placeholders = program.example_inputs.leaves(), program.placeholders
    if len(leaves) != len(placeholders):
        yield f"{len(placeholders)} placeholders for {len(leaves)} example inputs"
    by_name = dict(zip([node.name for node in placeholders], leaves, strict=False))
    for name, axes in program.dynamic_axes.items():
        leaf = by_name.get(name)
        if not isinstance(leaf, Tensor) or any(axis >= leaf.ndim for axis in axes):
            yield f"dynamic axes {axes} of input {name!r}, which has no such axes"


def program_runs(program: Program) -> Iterator[str]:
    """5. The shapes of all ops fit together (run on fake tensors), and dynamic axes stay dynamic on the way."""
    try:
        propagate(program)
    except Exception as failure:  # every op raises its own kind
        yield f"the graph does not run: {failure}"
        return
    for node in program.placeholders:
        for axis, name in program.dynamic_axes.get(node.name, {}).items():
            size = node.meta["val"].shape[axis]
            if isinstance(size, int) or not size.node.expr.free_symbols:
                yield f"a constant of the graph fixes the axis {name!r} of input {node.name!r} at {size}"


RULES: tuple[Rule, ...] = (
    graph_is_well_formed,
    calls_are_operators,
    attributes_are_tensors,
    inputs_fit_the_placeholders,
    program_runs,
)


def verify(program: Program, after: str) -> None:
    """Raise VerificationError that names every broken rule, and the step ``after`` which it was broken."""
    for rule in RULES:
        broken = list(rule(program))
        if broken:
            what = (rule.__doc__ or rule.__name__).split(". ", 1)[-1]
            raise VerificationError(f"The Program is not valid after {after}: {'; '.join(broken)}. Rule: {what}")


def is_allowed(target: Any) -> bool:
    return isinstance(target, (torch._ops.OpOverload, torch._ops.HigherOrderOperator)) or target in SYMBOLIC_FUNCTIONS
