"""Erase what computes nothing in evaluation: dropout, detach, copies, casts to the same dtype, asserts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from planish.compiler.contracts import Context, Pass, Proposal, Situation, Stage
from planish.compiler.program import Program
from planish.compiler.shapes import ensure_shapes

aten = torch.ops.aten

_IDENTITIES = (
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default,
    aten.detach.default, aten.alias.default, aten.positive.default,
)  # fmt: skip
_COPIES = (aten.clone.default, aten.contiguous.default, aten.lift_fresh_copy.default)
_CASTS = (
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.type_as.default, aten._to_copy.default,
)  # fmt: skip
_SHAPES = (aten.reshape.default, aten.expand.default, aten.flatten.using_ints, aten.repeat.default)


@dataclass(frozen=True)
class EraseNoOps(Pass):
    """Erases nodes that return their input, then what nobody reads.

    1. Dropout in evaluation, detach, alias.
    2. Copies, unless something in the graph still writes in place (a copy is then what protects the original).
    3. Casts to the dtype that the value has.
    4. Reshapes and expansions to the shape that the value has.
    5. Whole slices ``x[:]``.
    """

    name: ClassVar[str] = "erase-no-ops"
    stage: ClassVar[Stage] = Stage.CLEAN
    exact: ClassVar[bool] = True

    def run(self, program: Program, context: Context) -> Program:
        program = program.fork().eval()
        ensure_shapes(program)
        writes = any(_writes(node) for node in program.calls())
        for node in [*program.calls()]:
            if any(rule(node, writes) for rule in _RULES):
                node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
                program.graph.erase_node(node)
        program.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or _writes(node))
        program.graph_module.recompile()
        return program

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        return Proposal(cls(), "Operators that only matter in training would stand between those that fuse.")


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_identity(node: fx.Node, writes: bool) -> bool:
    return node.target in _IDENTITIES


def _is_needless_copy(node: fx.Node, writes: bool) -> bool:
    return node.target in _COPIES and not writes


def _is_needless_cast(node: fx.Node, writes: bool) -> bool:
    return node.target in _CASTS and not writes and _same(node, lambda value: (value.dtype, value.device))


def _is_needless_shape(node: fx.Node, writes: bool) -> bool:
    return node.target in _SHAPES and not writes and _same(node, lambda value: [str(size) for size in value.shape])


def _is_whole_slice(node: fx.Node, writes: bool) -> bool:
    if node.target is not aten.slice.Tensor or writes:
        return False
    step = node.args[4] if len(node.args) > 4 else 1
    return bool(step == 1) and _same(node, lambda value: [str(size) for size in value.shape])


def _same(node: fx.Node, feature: Callable[[Tensor], object]) -> bool:
    source = node.args[0]
    before = source.meta.get("val") if isinstance(source, fx.Node) else None
    after = node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return bool(feature(before) == feature(after))


_RULES = (_is_identity, _is_needless_copy, _is_needless_cast, _is_needless_shape, _is_whole_slice)
