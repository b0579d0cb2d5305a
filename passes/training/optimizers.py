"""Optimizers and schedules by the names that ``Training`` knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from planish.compiler.errors import UserError
from planish.passes.training.settings import Training

_MAKERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True, fused=True),
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}

_FACTORS: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
    "step": lambda share: 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01,
}


def make_optimizer(training: Training, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Weight decay on what has two dimensions and more; the rest are biases and scales."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    make = _MAKERS[training.optimizer] if isinstance(training.optimizer, str) else training.optimizer
    optimizer = make(groups, lr=training.learning_rate)
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"Return a torch.optim.Optimizer from Training(optimizer=…), not {type(optimizer).__name__}.")
    return optimizer


def make_schedule(training: Training, optimizer: Optimizer, share: Callable[[], float]) -> LRScheduler:
    """``share`` tells how much of the training is done, in 0..1."""
    if isinstance(training.schedule, str):
        factor = _FACTORS[training.schedule]
        return LambdaLR(optimizer, lambda _: _warmed(share(), training.warmup, factor))
    schedule = training.schedule(optimizer)
    if not isinstance(schedule, LRScheduler):
        raise UserError(f"Return an LRScheduler from Training(schedule=…), not {type(schedule).__name__}.")
    return schedule


def _warmed(share: float, warmup: float, factor: Callable[[float], float]) -> float:
    if share < warmup:
        return share / warmup
    return factor(min(1.0, (share - warmup) / (1.0 - warmup)))
