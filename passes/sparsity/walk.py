"""One pass over the layers: each is pruned with the inputs that it has when all before it are pruned already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, replace_tensor
from planish.passes.side_by_side import OneBatch
from planish.passes.sparsity.criteria import Criterion
from planish.passes.sparsity.inputs import rows_of
from planish.passes.sparsity.layers import Layer, Use

ROWS = 1 << 15
"""Rows of inputs that are looked at for each layer, evenly chosen: more cost time and change little."""

Prune = Callable[[Layer, Tensor, Tensor | None], Tensor]
"""(layer, its weight, what was observed) -> the new weight."""


def weight_of(program: Program, layer: Layer) -> Tensor:
    weight = program.tensor(layer.uses[0].weight)
    assert weight is not None
    return weight.detach()


def prune_by_weights(program: Program, layers: Sequence[Layer], prune: Prune) -> None:
    for layer in layers:
        replace_tensor(program, layer.uses[0].weight, prune(layer, weight_of(program, layer), None))


def prune_by_inputs(
    program: Program, layers: Sequence[Layer], criterion: Criterion, batches: Iterable[Inputs], prune: Prune
) -> None:
    """Run all ``batches`` side by side, node by node; a layer is pruned before its (last) call is computed.

    Holds the values that are still needed, for all batches, and the statistic of one layer (of shared ones longer).
    Raises UserError if there is no batch, or if the inputs of a layer are not finite.
    """
    uses = {use.node: (layer, use) for layer in layers for use in layer.uses}
    last = {layer.uses[-1].node for layer in layers}
    runs = [OneBatch(program, inputs) for inputs in batches]
    if not runs:
        raise UserError("Pass calibration data with at least one batch; the iterable is empty.")
    seen: dict[Layer, Tensor] = {}
    for node in program.graph.nodes:
        if node in uses:
            layer, use = uses[node]
            observed = _observe(layer, use, criterion, runs)
            seen[layer] = seen[layer] + observed if layer in seen else observed
            if node in last:
                pruned = prune(layer, weight_of(program, layer), seen.pop(layer))
                replace_tensor(program, layer.uses[0].weight, pruned)
        for run in runs:
            run.step(node)


def _observe(layer: Layer, use: Use, criterion: Criterion, runs: Sequence[OneBatch]) -> Tensor:
    """The sum of the criterion's statistic over all runs."""
    assert criterion.observe is not None
    at_most = max(1, -(-ROWS // len(runs)))
    total: Tensor | None = None
    for run in runs:
        found = criterion.observe(rows_of(layer, use, run.value(use.input), at_most))
        total = found if total is None else total.add_(found)
    assert total is not None
    if not torch.isfinite(total).all():
        raise UserError(f"Check the calibration data and the model: {layer.name} has infinite or NaN values on it.")
    return total
