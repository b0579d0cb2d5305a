"""A Program in fewer operators: PyTorch's own decompositions for what has no rule, and writes in place undone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.export import Dim, ExportedProgram, ShapesCollection

from planish.compiler.program import Program
from planish.compiler.scheme import Operator
from planish.compiler.trace import quiet_torch, trace

aten = torch.ops.aten
_BEYOND_EXPORT = (aten.grid_sampler_2d.default,)


def decomposed(program: Program, keep: Collection[Operator]) -> Program:
    """The same function with every operator outside ``keep`` decomposed as far as PyTorch knows how.

    Nothing is written in place any more; what is written into buffers is lost with the call.
    """
    with quiet_torch():
        return without_state(trace(exported(program).run_decompositions(_table(keep))))


def _table(keep: Collection[Operator]) -> Any:
    """PyTorch's table for export, and what PyTorch can decompose beyond it."""
    table = torch.export.default_decompositions()
    for operator in _BEYOND_EXPORT:
        table[operator] = decomposition_table[operator]
    for operator in [*table]:
        if operator in keep:
            del table[operator]
    return table


def exported(program: Program) -> ExportedProgram:
    """``program`` as PyTorch's own tools take it, with the same dynamic axes."""
    inputs = program.example_inputs
    shapes = ShapesCollection()
    for node, leaf in zip(program.placeholders, inputs.leaves(), strict=True):
        if isinstance(leaf, Tensor) and node.name in program.dynamic_axes:
            shapes[leaf] = dict.fromkeys(program.dynamic_axes[node.name], Dim.AUTO)
    with torch.no_grad():
        module, args, kwargs = program.module(), inputs.args, inputs.kwargs
        return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)  # type: ignore[arg-type]


def without_state(program: Program) -> Program:
    """``program`` without the writes into its own buffers, at the end of it."""
    for node in [*program.calls(aten.copy_.default)]:
        target = node.args[0]
        if isinstance(target, fx.Node) and target.op == "get_attr" and not node.users:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program
