"""What the functions of MIL operations share. Arguments are tensors, strings, or lists of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from planish.compiler.errors import PlanishError

Function = Callable[..., Any]


class Unevaluated(PlanishError):
    """The reference evaluation does not know an operation, or this form of it: the package stays unproven."""

    def __init__(self, kind: str, form: str = "") -> None:
        super().__init__(f"the reference evaluation does not know op {kind}" + (f": {form}" if form else ""))
        self.kind = kind


def number(value: Tensor) -> Any:
    return value.item()


def numbers(value: Tensor) -> list[Any]:
    listed: list[Any] = value.flatten().tolist()
    return listed


def per_channel(values: Tensor, rank: int, axis: int = 1) -> Tensor:
    """A vector of one value a channel, so that it broadcasts against a tensor of ``rank``; a scalar as it is."""
    return values if values.ndim == 0 else values.reshape([-1 if dim == axis % rank else 1 for dim in range(rank)])
