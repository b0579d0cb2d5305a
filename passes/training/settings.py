"""How a Program is trained: plain data, so that it prints, compares and stands in a saved plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from planish.compiler.errors import UserError, closest

OPTIMIZERS = ("sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad")
SCHEDULES = ("constant", "linear", "cosine", "step")
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class Training:
    """When to stop, what to optimize with, and what to keep.

    ``epochs`` (fractions allowed), ``steps``, ``minutes``: bounds; the first one reached ends the training. At least
    one is needed. A run bounded by minutes takes as many steps as the machine manages: repeat it with the ``steps``
    that its history reports to get the same weights.

    ``optimizer``: ``sgd`` (momentum 0.9, Nesterov), ``adam``, ``adamw``, ``nadam``, ``radam``, ``rmsprop`` or
    ``adagrad``, or a callable that makes a ``torch.optim.Optimizer`` of parameter groups and ``lr``; a plan cannot be
    replayed with such an object. ``weight_decay`` holds for tensors of two dimensions and more, not for biases and
    normalizations.

    ``schedule``: what becomes of ``learning_rate``: ``cosine`` (arXiv:1608.03983, without restarts) and ``linear``
    fall to 0, ``step`` divides by 10 after half and three quarters of the training, ``constant``; or a callable that
    makes an ``LRScheduler`` of the optimizer, stepped once a step. ``warmup``: share of the training in which the
    rate first rises from 0.

    ``accumulation``: batches of the loader in one step, their gradients averaged over rows.
    ``clip_norm``: largest L2 norm of all gradients together.
    ``precision``: ``bf16`` (autocast), ``fp32``, or ``auto``: bf16 where the processor computes it natively.
    ``compiled``: forward and backward are compiled by torch.compile, which needs a C++ compiler (on GPUs Triton) and a
        minute at the start: for longer trainings. Anew for each size of a batch: give the loader ``drop_last=True``.
    ``averaging``: decay of an exponential moving average of the weights; the average is what is evaluated and returned.
    ``frozen_statistics``: batch norms keep their running statistics, and normalize with them.

    ``evaluate_every``: steps between evaluations of the metric; None: at the end of every epoch.
    ``patience``: evaluations without a better metric before training stops.

    ``checkpoint``: folder; training that was killed continues from there, to the same weights.
    ``checkpoint_every``: steps between checkpoints; None: a minute apart.
    ``seed``: order of the data, dropout. None: that of the compilation.
    """

    epochs: float | None = None
    steps: int | None = None
    minutes: float | None = None
    optimizer: str | Callable[..., Optimizer] = "sgd"
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    schedule: str | Callable[[Optimizer], LRScheduler] = "cosine"
    warmup: float = 0.0
    accumulation: int = 1
    clip_norm: float | None = None
    precision: str = "auto"
    compiled: bool = False
    averaging: float | None = None
    frozen_statistics: bool = False
    evaluate_every: int | None = None
    patience: int | None = None
    checkpoint: str | None = None
    checkpoint_every: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None and self.minutes is None:
            raise UserError("Bound the training: give Training(…) epochs, steps or minutes.")
        for name in ("epochs", "minutes", "clip_norm"):
            self._demand(name, "a number above 0", lambda value: _is_real(value) and value > 0)
        for name in ("steps", "accumulation", "evaluate_every", "patience", "checkpoint_every"):
            self._demand(name, "a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)
        for name in ("learning_rate", "weight_decay"):
            self._demand(name, "a number of at least 0", lambda value: _is_real(value) and value >= 0)
        for name in ("warmup", "averaging"):
            self._demand(name, "a number of at least 0 and below 1", lambda value: _is_real(value) and 0 <= value < 1)
        self._demand("seed", "a whole number of at least 0", lambda value: _is_whole(value) and value >= 0)
        for name in ("compiled", "frozen_statistics"):
            self._demand(name, "True or False", lambda value: isinstance(value, bool))
        self._demand("checkpoint", "the path of a folder", lambda value: isinstance(value, str))
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if isinstance(value, str) and value not in choices:
                raise UserError(f"{name} {value!r} is not known{closest(value, choices)}")
            if not isinstance(value, str) and (name == "precision" or not callable(value)):
                raise UserError(f"Give Training({name}=…) one of {', '.join(choices)}, not {value!r}.")

    def _demand(self, name: str, what: str, fits: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        default = next(option.default for option in dataclasses.fields(self) if option.name == name)
        if not (value is None and default is None) and not fits(value):
            raise UserError(f"Give Training({name}=…) {what}, not {value!r}.")

    def part(self, name: str) -> Training:
        """The same for one of several trainings of a pass: checkpoints lie in a folder of their own."""
        if self.checkpoint is None:
            return self
        return dataclasses.replace(self, checkpoint=str(Path(self.checkpoint) / name))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value - value == 0
