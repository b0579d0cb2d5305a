"""Registers the built-in passes."""

from __future__ import annotations

from planish.compiler.contracts import Pass
from planish.compiler.hookspecs import hookimpl


@hookimpl
def planish_passes() -> list[type[Pass]]:
    from planish.passes.distill.distill import Distill
    from planish.passes.drop_blocks import DropBlocks
    from planish.passes.erase_noops import EraseNoOps
    from planish.passes.fold_batch_norm import FoldBatchNorm
    from planish.passes.prune_channels import PruneChannels
    from planish.passes.quantize_int8 import QuantizeInt8
    from planish.passes.quantize_weights import QuantizeWeights
    from planish.passes.sparsify import Sparsify

    return [Distill, DropBlocks, EraseNoOps, FoldBatchNorm, PruneChannels, QuantizeInt8, QuantizeWeights, Sparsify]
