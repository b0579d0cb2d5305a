"""An operator of one's own, and how it couples channels: without the rule none that it touches can be pruned."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from planish.compiler.coupling.inference import Inference, Type


@torch.library.custom_op("planish_example::soft_threshold", mutates_args=())
def soft_threshold(x: Tensor, amount: Tensor) -> Tensor:
    """``x`` [..., C] moved towards zero by ``amount`` [C], and not across it."""
    return x.sign() * (x.abs() - amount).clamp(min=0)


@soft_threshold.register_fake
def _(x: Tensor, amount: Tensor) -> Tensor:
    return torch.empty_like(x)


def soft_threshold_rule(node: fx.Node, inference: Inference) -> Type:
    """The result has the dimensions of ``x``, and ``amount`` has its last one."""
    x, amount = (inference.shape(argument) for argument in node.args)
    inference.unify(x[-1], amount[0])
    return x
