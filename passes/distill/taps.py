"""Features of a Program: the results of nodes beside its outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from planish.compiler.errors import UserError, closest
from planish.compiler.program import Program, arguments, source_module
from planish.compiler.shapes import ensure_shapes
from planish.compiler.signature import Signature

aten = torch.ops.aten


def find(program: Program, name: str, whose: str) -> str:
    """The node called ``name``, or the one that a module of that name hands out.

    Raises UserError, with the closest names, if there is neither.
    """
    nodes = {node.name: node for node in program.calls()}
    if name in nodes:
        return name
    inside = [node for node in nodes.values() if f"{source_module(node)}.".startswith(f"{name}.")]
    handed_out = [node for node in inside if any(user not in inside for user in node.users)]
    if not handed_out:
        paths = {source_module(node) for node in nodes.values()} - {""}
        modules = {".".join(path.split(".")[:depth]) for path in paths for depth in range(1, path.count(".") + 2)}
        near = closest(name, modules | nodes.keys())
        raise UserError(f"Name a node or a module of the {whose}: it has no {name!r}{near}")
    ensure_shapes(program)
    real = [node for node in handed_out if isinstance(node.meta.get("val"), Tensor) and _is_real(node)]
    if not real:
        raise UserError(f"Name another node or module of the {whose}: {name!r} computes no real numbers.")
    return real[-1].name


def _is_real(node: fx.Node) -> bool:
    return bool(node.meta["val"].is_floating_point())


def tapped(program: Program, names: Sequence[str]) -> Program:
    """``program`` on the same tensors, returning ``(outputs, [feature of each name])``."""
    if not names:
        return program
    program = program.fork()
    nodes = {node.name: node for node in program.graph.nodes}
    signature = Signature.of(program.graph)
    (leaves,) = program.output.args
    assert isinstance(leaves, (tuple, list))
    program.output.args = ([*leaves, *(nodes[name] for name in names)],)
    outputs = pytree.tree_unflatten([0] * len(leaves), signature.outputs)
    structure = pytree.tree_structure((outputs, [0] * len(names)))
    replace(signature, outputs=structure).attach(program.graph)
    program.graph_module.recompile()
    return program


def untapped(program: Program, like: Program) -> Program:
    """``program``, which ``tapped`` made of ``like``, with the outputs of that."""
    program = program.fork()
    (leaves,), (original,) = program.output.args, like.output.args
    assert isinstance(leaves, (tuple, list)) and isinstance(original, (tuple, list))
    own = leaves[: len(original)]
    program.output.args = (tuple(own) if isinstance(original, tuple) else own,)
    Signature.of(like.graph).attach(program.graph)
    program.graph_module.recompile()
    return program


@dataclass(frozen=True)
class Attention:
    """One attention of a transformer: names of its query, key, value and mask nodes, and how it scores."""

    query: str
    key: str
    value: str
    mask: str | None
    causal: bool
    scale: float | None
    layer: str
    """The module that repeats: ``encoder.layer.3``."""

    @property
    def names(self) -> list[str]:
        return [self.query, self.key, self.value, *([self.mask] if self.mask else [])]

    def log_map(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Log-probabilities ``[rows, heads, queries, keys]``."""
        if key.shape[1] != query.shape[1]:  # grouped queries
            key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = query @ key.transpose(-1, -2) * (self.scale if self.scale is not None else query.shape[-1] ** -0.5)
        if self.causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~allowed, -torch.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return scores.log_softmax(-1)


def attentions(program: Program, whose: str) -> list[Attention]:
    """The attentions of ``program`` in order. Raises UserError if it has none."""
    found = [_attention(node) for node in program.calls(aten.scaled_dot_product_attention.default)]
    if not found:
        raise UserError(
            f"Match layers of transformers that call scaled_dot_product_attention (attn_implementation='sdpa' in "
            f"transformers), or name features: the {whose} has no such attention."
        )
    return found


def _attention(node: fx.Node) -> Attention:
    given = arguments(node)
    query, key, value = (given[name] for name in ("query", "key", "value"))
    assert isinstance(query, fx.Node) and isinstance(key, fx.Node) and isinstance(value, fx.Node)
    mask, scale = given.get("attn_mask"), given.get("scale")
    numbered = re.match(r"(.*\.\d+|\d+)(\.|$)", source_module(node))
    return Attention(
        query.name, key.name, value.name, mask.name if isinstance(mask, fx.Node) else None,
        bool(given.get("is_causal", False)), float(scale) if isinstance(scale, (int, float)) else None,
        numbered.group(1) if numbered else "",
    )  # fmt: skip
