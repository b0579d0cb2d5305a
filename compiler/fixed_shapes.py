"""A Program for one batch size alone, made of one that takes any: what devices with fixed shapes are given.

Passes work on the Program that takes any batch: training needs larger ones than a phone runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.shapes import propagate


def with_one_row(program: Program) -> Program:
    """``program`` for a batch of one; other sizes are those of the example inputs. It shares the tensors.

    1. Sizes that the graph computes become numbers.
    2. What computed them goes.
    """
    if not program.dynamic_axes:
        return program
    forked = program.fork()
    fixed = Program(forked.graph_module, next(program.example_inputs.split(1)))
    propagate(fixed)
    for node in fixed.calls():
        size = node.meta["val"]
        if isinstance(size, (bool, int, float)):
            _put(size, node)
    fixed.graph.eliminate_dead_code()
    fixed.graph_module.recompile()
    return fixed


def _put(value: Any, node: fx.Node) -> None:
    """``value`` wherever ``node`` is read."""

    def instead(read: fx.Node) -> Any:
        return value if read is node else read

    for user in [*node.users]:
        user.args = fx.map_arg(user.args, instead)
        user.kwargs = fx.map_arg(user.kwargs, instead)


def row_by_row(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run``, which takes one row, for calls with several: a metric need not know what the device takes."""

    def rows(*args: Any, **kwargs: Any) -> Any:
        results = [each.call(run) for each in Inputs(args, kwargs).split(1)]
        _, structure = pytree.tree_flatten(results[0])
        columns = zip(*(pytree.tree_leaves(result) for result in results), strict=True)
        return pytree.tree_unflatten([_joined(column) for column in columns], structure)

    return rows


def _joined(column: tuple[Any, ...]) -> Any:
    first = column[0]
    return torch.cat(column) if isinstance(first, Tensor) and first.ndim and first.shape[0] == 1 else first
