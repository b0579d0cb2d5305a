"""Finds the coupling rule of a node: one line an op, and one rule for all ops that PyTorch calls element-wise."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from planish.compiler.coupling import rules_layout, rules_products, rules_tables, rules_values
from planish.compiler.coupling.inference import Rule, RuleOf, Rules

BUILT_IN: Rules = {
    **rules_products.RULES,
    **rules_layout.RULES,
    **rules_values.RULES,
    **rules_tables.RULES,
    operator.getitem: rules_layout.item,
}


def rule_finder(rules: Rules) -> RuleOf:
    """Looks in ``rules``, then in the built-in table, then at the op's tags."""
    table = {**BUILT_IN, **rules}

    def rule_of(node: fx.Node) -> Rule | None:
        packet = getattr(node.target, "overloadpacket", node.target)
        rule = table.get(packet) or table.get(_functional(packet))
        pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
        return rules_values.elementwise if rule is None and pointwise else rule

    return rule_of


def _functional(packet: Any) -> Any:
    """``op`` for ``op_``: what is written in place has the same Shape."""
    return getattr(torch.ops.aten, packet.__name__.removesuffix("_"), None)
