"""Operators as the several ones that they compute, for runtimes that have only these in integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx

from planish.compiler.program import Program
from planish.compiler.scheme import Operator
from planish.compiler.shapes import ensure_shapes

aten = torch.ops.aten


def write_in_parts(program: Program, operators: Collection[Operator]) -> None:
    """Replace the nodes of ``operators`` in ``program``, which computes the same afterwards.

    A form that this module does not know (a masked attention) stays as it is.
    """
    for node in [*program.calls(*operators)] if operators else ():
        write = PARTS.get(node.target)
        result = write(program.graph, node) if write is not None else None
        if result is not None:
            node.replace_all_uses_with(result)
            program.graph.erase_node(node)
    program.graph_module.recompile()
    ensure_shapes(program)


def _attention(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """softmax(query * scale @ key^T) @ value; with a mask, -inf among the scores would take all of their range."""
    named: dict[str, Any] = dict(zip(_ATTENTION, node.args, strict=False)) | node.kwargs
    if named.get("attn_mask") is not None or any(named.get(option) for option in ("is_causal", "enable_gqa")):
        return None
    query, key, value = (named[name] for name in ("query", "key", "value"))
    scale = named.get("scale")
    factor = 1 / math.sqrt(query.meta["val"].shape[-1]) if scale is None else scale

    with graph.inserting_before(node):
        call = _caller(graph, node)
        transposed = call(aten.transpose.int, key, -2, -1)
        scores = call(aten.matmul.default, call(aten.mul.Tensor, query, factor), transposed)
        return call(aten.matmul.default, call(aten.softmax.int, scores, -1), value)


def _layer_norm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """(x - mean) * rsqrt(variance + eps) * weight + bias."""
    named: dict[str, Any] = dict(zip(_LAYER_NORM, node.args, strict=False)) | node.kwargs
    dims = [*range(-len(named["normalized_shape"]), 0)]
    with graph.inserting_before(node):
        call = _caller(graph, node)
        centred = call(aten.sub.Tensor, named["input"], call(aten.mean.dim, named["input"], dims, True))
        variance = call(aten.mean.dim, call(aten.mul.Tensor, centred, centred), dims, True)
        result = call(
            aten.mul.Tensor, centred, call(aten.rsqrt.default, call(aten.add.Tensor, variance, named.get("eps", 1e-5)))
        )
        for operator, constant in ((aten.mul.Tensor, named.get("weight")), (aten.add.Tensor, named.get("bias"))):
            result = result if constant is None else call(operator, result, constant)
        return result


def _caller(graph: fx.Graph, node: fx.Node) -> Callable[..., fx.Node]:
    """Makes parts of ``node``, which come from the same module."""

    def call(target: Operator, *arguments: Any) -> fx.Node:
        part = graph.call_function(target, arguments)
        if "nn_module_stack" in node.meta:
            part.meta["nn_module_stack"] = node.meta["nn_module_stack"]
        return part

    return call


_ATTENTION = tuple(argument.name for argument in aten.scaled_dot_product_attention.default._schema.arguments)
_LAYER_NORM = tuple(argument.name for argument in aten.layer_norm.default._schema.arguments)
PARTS: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    aten.scaled_dot_product_attention.default: _attention,
    aten.layer_norm.default: _layer_norm,
}
"""Operator -> what writes its parts ahead of a node, or gives None for a form that it does not know."""
