"""Rewrites a Program so that every size it depends on is written out. Outputs stay the same, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from planish.compiler.constants import Constants
from planish.compiler.coupling.decompose import decompose
from planish.compiler.coupling.inference import RuleOf
from planish.compiler.coupling.layers import part_layers
from planish.compiler.coupling.parts import split_early
from planish.compiler.program import Program, add_tensors, arguments, copied

aten = torch.ops.aten

FOLDED_AT_MOST = 1 << 26
"""Elements of a folded constant; larger ones are computed by the graph as before."""


def normalize(program: Program, rule_of: RuleOf) -> Program:
    """A fork of ``program`` in which cut dimensions can be followed. Needs shapes."""
    graph = copied(program.graph)
    decompose(graph, rule_of)
    for node in [*graph.nodes]:
        rewrite = _REWRITES.get(getattr(node.target, "overloadpacket", None))
        if rewrite is not None:
            rewrite(node)
        elif node.op == "get_attr" and not node.users:  # a tensor that nothing computes with
            graph.erase_node(node)
    split_early(graph)
    part_layers(graph)
    # Most of these Programs are only read: to write the code of one that never runs would double the time of coupling.
    program = program.with_graph(graph, _LazyGraphModule)
    _fold_constants(program)
    return program


# ---------------------------------------------------------------------- sizes


def _write_out_parts(node: fx.Node) -> None:
    """1. chunk, split and tensor_split name their number or size; split_with_sizes names each size."""
    axis = _axis(node)
    sizes = [part.shape[axis] for part in node.meta["val"]]
    if all(isinstance(size, int) for size in sizes):
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (node.args[0], sizes, axis), {}


def _count_from_the_front(node: fx.Node) -> None:
    """2. Bounds of slices count from the front, and stay within the size."""
    axis, given = _axis(node), arguments(node)
    size = _value(node.args[0]).shape[axis]
    bounds = {name: given[name] for name in ("start", "end", "length") if given.get(name) is not None}
    if not isinstance(size, int) or not all(isinstance(bound, int) for bound in bounds.values()):
        return
    for name, bound in bounds.items():
        if name == "length" or bound > size:  # up to the end, however long
            continue
        _set(node, name, max(bound + size, 0) if bound < 0 else bound)


def _name_squeezed_axes(node: fx.Node) -> None:
    """3. squeeze names the axes of size 1: others that are cut down to 1 stay."""
    shape, given = _value(node.args[0]).shape, arguments(node)
    named = given.get("dim")
    axes = range(len(shape)) if named is None else [named] if isinstance(named, int) else named
    ones = sorted({axis % len(shape) for axis in axes if shape[axis] == 1}) if shape else []
    node.target = aten.squeeze.dims
    node.args, node.kwargs = (node.args[0], ones), {}


def _write_out_scale(node: fx.Node) -> None:
    """4. Attention scales by the width of a head as it was, whatever is left of it."""
    if node.kwargs.get("scale") is None:
        width = _value(node.args[0]).shape[-1]
        if isinstance(width, int):
            node.update_kwarg("scale", 1.0 / math.sqrt(width))


def _lay_out_pairs(node: fx.Node) -> None:
    """5. Pairs that are read as complex numbers lie densely, however wide what they are sliced from becomes."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if source.target is not aten.contiguous.default:
        with node.graph.inserting_before(node):
            dense = node.graph.call_function(aten.contiguous.default, (source,))
        dense.meta = dict(source.meta)
        node.args = (dense,)


_SPLITS = (aten.chunk, aten.split, aten.tensor_split, aten.unsafe_chunk, aten.unsafe_split)
_REWRITES: dict[Any, Callable[[fx.Node], None]] = {
    **dict.fromkeys(_SPLITS, _write_out_parts),
    **dict.fromkeys((aten.slice, aten.narrow, aten.slice_scatter), _count_from_the_front),
    aten.squeeze: _name_squeezed_axes,
    aten.scaled_dot_product_attention: _write_out_scale,
    aten.view_as_complex: _lay_out_pairs,
}


def _value(argument: Any) -> Tensor:
    value = argument.meta["val"]
    assert isinstance(value, Tensor)
    return value


def _axis(node: fx.Node) -> int:
    axis: int = arguments(node)["dim"]
    return axis % _value(node.args[0]).ndim


def _set(node: fx.Node, name: str, value: Any) -> None:
    """Set argument ``name`` by position where it stands there."""
    index = [argument.name for argument in node.target._schema.arguments].index(name)  # type: ignore[union-attr]
    if index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


# ---------------------------------------------------------------------- constants


def _fold_constants(program: Program) -> None:
    """6. What is computed from constants alone becomes a constant, which can be cut (ALiBi's slopes, from arange)."""
    constants = Constants(program, lambda node: isinstance(program.tensor(node), nn.Parameter))
    folded: dict[fx.Node, Tensor] = {}
    for node in program.calls():
        if node in constants and not all(user in constants for user in node.users):
            value = constants.value(node)
            if isinstance(value, Tensor) and value.numel() <= FOLDED_AT_MOST:
                folded[node] = value.clone()
    named = {f"{node.name}_constant": value for node, value in folded.items()}
    for node, constant in zip(folded, add_tensors(program, named), strict=True):
        constant.meta = {"val": node.meta["val"]}
        node.replace_all_uses_with(constant)
    for node in reversed([*program.graph.nodes] if folded else []):  # eliminate_dead_code lints all of them first
        if not node.users and not node.is_impure():
            program.graph.erase_node(node)
