"""The tensors of a model in training: by name, averaged, and put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Tensors = dict[str, Tensor]


def tensors_of(module: nn.Module) -> Tensors:
    """Parameters and buffers (those that are not persistent too) by name, tied ones once."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items()}


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies on the CPU that share no memory with each other, as safetensors needs them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def put(tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Write every tensor of ``into`` from the one of the same name."""
    for name, target in into.items():
        target.copy_(tensors[name])


class Average:
    """Exponential moving average of weights and running statistics, as in arXiv:1703.01780.

    The decay rises to its value as (1 + n) / (10 + n), so that short trainings do not keep the start.
    """

    def __init__(self, decay: float, current: Tensors) -> None:
        self.decay, self.count, self._current = decay, 0, current
        self.tensors = {name: tensor.clone() for name, tensor in current.items()}

    def update(self) -> None:
        """Take in what the model has now."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        real = [name for name, tensor in self._current.items() if tensor.is_floating_point()]
        update = get_ema_multi_avg_fn(decay)
        update([self.tensors[name] for name in real], [self._current[name] for name in real], None)
        for name in self._current.keys() - real:
            self.tensors[name].copy_(self._current[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average while this lasts."""
        held = {name: tensor.clone() for name, tensor in self._current.items()}
        put(self.tensors, self._current)
        try:
            yield
        finally:
            put(held, self._current)
