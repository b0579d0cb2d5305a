"""How many zeros each layer gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from planish.passes.sparsity.layers import Layer
from planish.passes.sparsity.patterns import Blocks

SCOPES = ("global", "layer")


def ratios(weights: Mapping[Layer, Tensor], pattern: Blocks, ratio: float) -> dict[Layer, float]:
    """The share of zeros of each layer so that they are ``ratio`` in all, by one threshold for the model.

    LAMP (arXiv:2010.07611): a tile is worth its square, relative to all in its layer that are not smaller. So layers
    of different scale compare, and none loses everything.
    """
    tiles = {layer: pattern.sums(layer.matrix(weight).square().double()).flatten() for layer, weight in weights.items()}
    worth = {layer: _worth(values) for layer, values in tiles.items()}
    every = torch.cat([*worth.values()])
    removed = round(ratio * len(every))
    threshold = every.kthvalue(removed).values if removed else every.min() - 1
    return {layer: float((values <= threshold).double().mean()) for layer, values in worth.items()}


def _worth(squares: Tensor) -> Tensor:
    ascending = squares.sort().values
    not_smaller = ascending.flip(0).cumsum(0).flip(0)
    return ascending / not_smaller.clamp_min(torch.finfo(torch.float64).tiny)


def same_for_all(layers: Sequence[Layer], ratio: float) -> dict[Layer, float]:
    return dict.fromkeys(layers, ratio)
