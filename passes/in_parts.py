"""Operators as the several ones that they compute, for runtimes that have only these in integers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import fx

from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, add_tensor, arguments
from planish.compiler.scheme import Operator
from planish.compiler.shapes import ensure_shapes
from planish.passes.attention_masks import ATTENTION, Mask, constant_masks, factor_of

aten = torch.ops.aten


def write_in_parts(program: Program, operators: Collection[Operator], batches: Iterable[Inputs] = ()) -> list[fx.Node]:
    """Replace the nodes of ``operators`` in ``program``, which computes the same afterwards; return those that stay.

    1. Attention with a mask is taken apart if the mask depends on no input: ``batches`` show how far the scores reach.
       What it takes out keeps less than 1/512 of a row then.
    2. A form that this module does not know stays as it is.
    """
    staying = []
    masks = constant_masks(program, batches) if ATTENTION in operators else {}
    for node in [*program.calls(*operators)] if operators else ():
        write = PARTS.get(node.target)
        result = write(program, node, masks) if write is not None else None
        if result is None:
            staying.append(node)
        else:
            node.replace_all_uses_with(result)
            program.graph.erase_node(node)
    program.graph_module.recompile()
    ensure_shapes(program)
    return staying


def _attention(program: Program, node: fx.Node, masks: Mapping[fx.Node, Mask]) -> fx.Node | None:
    """softmax(max(query * scale @ key^T + mask, floor)) @ value."""
    named, mask = arguments(node), masks.get(node)
    masked = named.get("attn_mask") is not None or named.get("is_causal")
    if named.get("enable_gqa") or (masked and mask is None):
        return None
    query, key, value = (named[name] for name in ("query", "key", "value"))
    added = [
        add_tensor(program, f"{node.name}_mask", tensor)
        for tensor in ((mask.bias, mask.shift) if mask is not None else ())
        if tensor is not None
    ]
    with program.graph.inserting_before(node):
        call = _caller(program.graph, node)
        transposed = call(aten.transpose.int, key, -2, -1)
        scores = call(aten.matmul.default, call(aten.mul.Tensor, query, factor_of(named)), transposed)
        for constant in added:
            scores = call(aten.add.Tensor, scores, constant)
        if mask is not None and mask.shift is not None:
            scores = call(aten.clamp_min.default, scores, mask.floor)
        return call(aten.matmul.default, call(aten.softmax.int, scores, -1), value)


def _layer_norm(program: Program, node: fx.Node, _: Mapping[fx.Node, Mask]) -> fx.Node:
    """(x - mean) * rsqrt(variance + eps) * weight + bias."""
    named = arguments(node)
    dims = [*range(-len(named["normalized_shape"]), 0)]
    with program.graph.inserting_before(node):
        call = _caller(program.graph, node)
        centred = call(aten.sub.Tensor, named["input"], call(aten.mean.dim, named["input"], dims, True))
        variance = call(aten.mean.dim, call(aten.mul.Tensor, centred, centred), dims, True)
        result = call(aten.mul.Tensor, centred, call(aten.rsqrt.default, call(aten.add.Tensor, variance, named["eps"])))
        for operator, constant in ((aten.mul.Tensor, named.get("weight")), (aten.add.Tensor, named.get("bias"))):
            result = result if constant is None else call(operator, result, constant)
        return result


def _caller(graph: fx.Graph, node: fx.Node) -> Callable[..., fx.Node]:
    """Makes parts of ``node``, which come from the same module."""

    def call(target: Operator, *args: Any) -> fx.Node:
        part = graph.call_function(target, args)
        if "nn_module_stack" in node.meta:
            part.meta["nn_module_stack"] = node.meta["nn_module_stack"]
        return part

    return call


PARTS: dict[Any, Callable[[Program, fx.Node, Mapping[fx.Node, Mask]], fx.Node | None]] = {
    ATTENTION: _attention,
    aten.layer_norm.default: _layer_norm,
}
"""Operator -> what writes its parts ahead of a node, or gives None for a form that it does not know."""
