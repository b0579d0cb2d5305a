"""What the hand-written families are made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from planish.compiler.inputs import Inputs


class Function(nn.Module):
    """A function of tensors as a module, with the layers it uses."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def floats(*shape: int) -> Callable[[int], Inputs]:
    return lambda batch: Inputs((torch.randn(batch, *shape),))


def integers(high: int, *shape: int) -> Callable[[int], Inputs]:
    return lambda batch: Inputs((torch.randint(0, high, (batch, *shape)),))
