"""Finds the coupling rule of a node: one line an op, and one rule for all ops that PyTorch calls element-wise."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch

from planish.compiler.coupling import (
    rules_layout,
    rules_positions,
    rules_products,
    rules_segments,
    rules_tables,
    rules_values,
)
from planish.compiler.coupling.inference import Rule, RuleOf, Rules
from planish.compiler.program import qualified_name

BUILT_IN: Rules = {
    **rules_products.RULES,
    **rules_layout.RULES,
    **rules_segments.RULES,
    **rules_values.RULES,
    **rules_positions.RULES,
    **rules_tables.RULES,
    operator.getitem: rules_segments.item,
}


def rule_finder(rules: Rules) -> RuleOf:
    """Looks in ``rules``, then in the built-in table, then at the op's tags."""
    table = {**BUILT_IN, **rules}

    @functools.cache
    def rule_of(target: Any) -> Rule | None:
        packet = getattr(target, "overloadpacket", target)
        rule = table.get(packet) or table.get(_functional(packet)) or table.get(qualified_name(packet))
        pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
        return rules_values.elementwise if rule is None and pointwise else rule

    return lambda node: rule_of(node.target)


def _functional(packet: Any) -> Any:
    """``op`` for ``op_``: what is written in place has the same Shape."""
    return getattr(torch.ops.aten, packet.__name__.removesuffix("_"), None)
