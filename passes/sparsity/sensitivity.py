"""What each layer costs when it alone is sparse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, replace_tensor
from planish.compiler.verify import compare, outputs_of, worst_snr
from planish.passes.sparsity.criteria import kept_share, magnitude
from planish.passes.sparsity.layers import Layer
from planish.passes.sparsity.patterns import Pattern
from planish.passes.sparsity.walk import weight_of


@dataclass(frozen=True)
class Sensitivity:
    """Of one layer: what stays of its magnitude, and what that does to the outputs."""

    layer: str
    kept: float
    """Share of the sum of absolute weights."""
    snr_db: float | None
    """Of the worst output against the dense Program; None where all are equal to the last bit."""
    metric: float | None
    """The metric with this layer sparse; None without one."""


def sensitivities(
    program: Program,
    pattern: Pattern,
    shares: Mapping[Layer, float],
    batches: Sequence[Inputs],
    metric: Callable[[Callable[..., Any]], float] | None = None,
) -> list[Sensitivity]:
    """One row a layer of ``shares``, pruned by magnitude with all others dense, the worst first.

    Args:
        program: the dense Program.
        pattern: which zeros are allowed.
        shares: layers of ``program``, and their share of zeros, where the pattern leaves it open.
        batches: inputs on which the outputs are compared.
        metric: gets ``run(*inputs) -> outputs``; higher is better.
    """
    program = program.fork().eval()
    expected = outputs_of(program, batches)
    found = []
    for layer, share in shares.items():
        matrix = layer.matrix(weight_of(program, layer))
        pruned, keep = magnitude(matrix, None, pattern, share)
        alone = program.fork()
        replace_tensor(alone, layer.uses[0].weight, layer.weight(pruned))
        snr = worst_snr(compare(expected, outputs_of(alone, batches)))
        with torch.no_grad():
            scored = float(metric(alone)) if metric is not None else None
        found.append(Sensitivity(layer.name, kept_share(matrix, keep), snr, scored))
    return sorted(found, key=lambda each: float("inf") if each.snr_db is None else each.snr_db)
