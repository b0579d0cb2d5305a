"""The graph that a file is written from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from planish.backends.to_tflite.values import Value


@dataclass(frozen=True)
class Operator:
    kind: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    options: dict[str, Any]
    node: fx.Node | None


@dataclass(frozen=True)
class Graph:
    """What is written to the file."""

    operators: list[Operator]
    inputs: list[Value]
    outputs: list[Value]


@dataclass(frozen=True)
class Form:
    """How a file takes, gives and stores what it does."""

    integer_ends: bool = False
    """Quantized inputs and outputs are INT8."""
    channels_last: bool = True
    """Images are taken and given as [N, H, W, C]."""
    half: bool = False
    """Large float constants lie there in float16."""


PLAIN = Form()
