"""Writes ops that no rule covers in those that PyTorch itself puts them together from: ``hstack`` as ``cat``."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from planish.compiler.coupling.inference import RuleOf, holds_tensor


def decompose(graph: fx.Graph, rule_of: RuleOf) -> None:
    """Inlines each op without a rule that PyTorch implements by other ops. Needs shapes; outputs stay the same."""
    for node in [*graph.nodes]:
        if not isinstance(node.target, torch._ops.OpOverload) or rule_of(node) is not None:
            continue
        if node.target._can_decompose() and holds_tensor(node.meta["val"]):
            parts = _parts(node)
            if parts is not None:
                _inline(graph, node, parts)


def _parts(node: fx.Node) -> fx.Graph | None:
    """A graph of the ops that ``node`` is put together from, with a placeholder for each node that it reads.

    None where that depends on values, or needs tensors that are no inputs.
    """
    inputs = node.all_input_nodes
    target: Any = node.target

    def run(*values: Any) -> Any:
        of = dict(zip(inputs, values, strict=True)).__getitem__
        return target.decompose(*fx.map_arg(node.args, of), **fx.map_arg(node.kwargs, of))

    if not all(isinstance(source.meta["val"], Tensor) for source in inputs):
        return None
    try:
        with torch.no_grad():
            traced = make_fx(run, tracing_mode="symbolic")(*(source.meta["val"] for source in inputs))
    except Exception:  # whatever its implementation asks of values: the op stays, and the groups name it
        return None
    inner = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    return traced.graph if all(node.op == "call_function" and "val" in node.meta for node in inner) else None


def _inline(graph: fx.Graph, node: fx.Node, parts: fx.Graph) -> None:
    stands_for: dict[fx.Node, fx.Node] = {}
    sources = iter(node.all_input_nodes)
    with graph.inserting_before(node):
        for inner in parts.nodes:
            if inner.op == "placeholder":
                stands_for[inner] = next(sources)
            elif inner.op == "call_function":
                stands_for[inner] = graph.node_copy(inner, stands_for.__getitem__)
                stands_for[inner].meta = {**node.meta, "val": inner.meta["val"]}
    results = fx.map_arg(parts.output_node().args[0], stands_for.__getitem__)
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
    else:
        for user in [*node.users]:
            assert user.target is operator.getitem
            user.replace_all_uses_with(pytree.tree_leaves(results)[int(user.args[1])])  # type: ignore[arg-type]
            graph.erase_node(user)
    graph.erase_node(node)
