"""A Program in fewer operators: PyTorch's own decompositions for what has no rule, and writes in place undone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.export import Dim, ExportedProgram, ShapesCollection

from planish.compiler.program import Program, qualified_name
from planish.compiler.scheme import Operator
from planish.compiler.trace import quiet_torch, trace

aten = torch.ops.aten
_BEYOND_EXPORT = (aten.grid_sampler_2d.default,)


def histc(x: Tensor, bins: int = 100, low: float = 0, high: float = 0) -> Any:
    """Counts, for each bin, the values whose bin it is. Only for limits that are given."""
    if low >= high:
        return NotImplemented
    x = x.flatten()
    places = ((x - low) / (high - low) * bins).floor().clamp(max=bins - 1)
    counted = torch.logical_and(x >= low, x <= high)
    hits = torch.logical_and(places.unsqueeze(-1) == torch.arange(bins), counted.unsqueeze(-1))
    return hits.to(torch.float32).sum(0).to(x.dtype)


def grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor | None = None, *others: Any) -> Any:
    """Mixtures of experts: rows [T, K], sorted by expert, meet matrices [experts, K, N]. ``ends``: of their rows.

    Every expert computes every row, and each row takes its own: shapes stay known, for experts times the products.
    """
    if rows.ndim != 2 or matrices.ndim != 3 or ends is None or any(other is not None for other in others):
        return NotImplemented
    expert = (torch.arange(rows.shape[0]).unsqueeze(1) >= ends).to(torch.int64).sum(1, keepdim=True)
    products = rows.new_zeros(rows.shape[0], matrices.shape[2])
    for number in range(matrices.shape[0]):
        products = torch.where(expert == number, rows @ matrices[number], products)
    return products


_OWN: dict[str, Callable[..., Any]] = {
    "aten::histc": histc, "aten::_grouped_mm": grouped_product, "transformers::grouped_mm_fallback": grouped_product,
}  # fmt: skip
"""By name, as the libraries need not be there: what PyTorch cannot decompose."""


def own_decompositions(targets: Iterable[Any]) -> dict[Any, Callable[..., Any]]:
    """Of ``targets``, those that PyTorch cannot decompose and we can, with how."""
    return {each: _OWN[name] for each in targets if (name := qualified_name(each)) in _OWN}


def decomposed(program: Program, keep: Collection[Operator]) -> Program:
    """The same function with every operator outside ``keep`` decomposed as far as PyTorch knows how.

    Nothing is written in place any more; what is written into buffers is lost with the call.
    """
    with quiet_torch():
        return without_state(trace(exported(program).run_decompositions(_table(program, keep))))


def _table(program: Program, keep: Collection[Operator]) -> Any:
    """PyTorch's table for export, what PyTorch can decompose beyond it, and our own."""
    table: Any = torch.export.default_decompositions()
    table.update(own_decompositions(node.target for node in program.calls()))
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
