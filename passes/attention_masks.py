"""Masks of attention in finite numbers: minus infinity among the scores would take all of their integers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.constants import Constants
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, arguments

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
_MASKED = -1e4
"""A mask that adds less than this takes its keys out."""
_SHARE = 512
"""Keys that are taken out get less than one part in so many of a row: half a step of softmax's integers."""


@dataclass
class Mask:
    """What a mask does to the scores, and where these lie."""

    kept: Tensor
    """Which scores count; broadcasts to them."""
    bias: Tensor | None
    """What is added to those."""
    lowest: float = math.inf
    """Of the scores that count."""
    highest: float = -math.inf
    """Of all scores."""

    def see(self, scores: Tensor) -> None:
        scores = scores if self.bias is None else scores + self.bias
        counting = scores[self.kept.expand_as(scores)]
        if counting.numel():
            self.lowest = min(self.lowest, float(counting.min()))
            self.highest = max(self.highest, float(scores.max()))

    @property
    def floor(self) -> float:
        """So far below all scores that count that no key there gets a share."""
        return self.lowest - math.log(_SHARE * self.kept.shape[-1])

    @property
    def shift(self) -> Tensor | None:
        """What takes the scores that do not count to the floor or below; None if all count."""
        if bool(self.kept.all()):
            return None
        return torch.where(self.kept, 0.0, self.floor - self.highest)


def factor_of(named: Mapping[str, Any]) -> float:
    """What the scores are multiplied with."""
    scale = named.get("scale")
    return 1 / math.sqrt(named["query"].meta["val"].shape[-1]) if scale is None else float(scale)


def constant_masks(program: Program, batches: Iterable[Inputs]) -> dict[fx.Node, Mask]:
    """The attentions whose masks depend on no input; how far their scores reach, ``batches`` show."""
    constants = Constants(program)
    candidates = {node: _mask(constants, arguments(node)) for node in program.calls(ATTENTION)}
    found = {node: mask for node, mask in candidates.items() if mask is not None}
    if found:
        with torch.no_grad():
            for inputs in batches:
                _Scores(program, found).run(*inputs.leaves(), enable_io_processing=False)
    return {node: mask for node, mask in found.items() if math.isfinite(mask.lowest) and math.isfinite(mask.highest)}


def _mask(constants: Constants, named: Mapping[str, Any]) -> Mask | None:
    given = named.get("attn_mask")
    if named.get("enable_gqa"):
        return None  # scores of other shapes
    if named.get("is_causal"):
        length, keys = named["query"].meta["val"].shape[-2], named["key"].meta["val"].shape[-2]
        fixed = isinstance(length, int) and isinstance(keys, int)
        return Mask(torch.ones(length, keys, dtype=torch.bool).tril(), None) if fixed else None
    if not isinstance(given, fx.Node) or given not in constants:
        return None
    mask: Tensor = constants.value(given)
    if mask.dtype is torch.bool:
        return Mask(mask, None)
    kept = mask > _MASKED
    bias = torch.where(kept, mask.detach(), 0.0)
    return Mask(kept, bias if bool(bias.any()) else None)


class _Scores(fx.Interpreter):
    """Shows each mask the scores that it is for."""

    def __init__(self, program: Program, masks: Mapping[fx.Node, Mask]) -> None:
        super().__init__(program.graph_module)
        self.masks = masks

    def run_node(self, n: fx.Node) -> Any:
        if n in self.masks:
            named = arguments(n)
            query, key = self.env[named["query"]], self.env[named["key"]]
            self.masks[n].see(query * factor_of(named) @ key.transpose(-2, -1))
        return super().run_node(n)
