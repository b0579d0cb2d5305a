"""How a backend quantizes, as data. The INT8 pass follows it and knows no backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

Operator = Callable[..., Any]


@dataclass(frozen=True)
class IntegerType:
    """A quantized type: real = scale * (integer - zero_point)."""

    dtype: torch.dtype
    minimum: int
    maximum: int
    symmetric: bool
    granularity: Literal["tensor", "channel", "row"] = "tensor"
    """How many scales: one; one for each channel of a weight; one for each row along the last dimension."""
    fixed: tuple[float, int] | None = None
    """Scale and zero point, where the runtime has them built in (a softmax ends at 1)."""

    @property
    def levels(self) -> int:
        return self.maximum - self.minimum


@dataclass(frozen=True)
class IntegerOp:
    """An operator that the runtime executes in integers when its operands are quantized."""

    operators: tuple[Operator, ...]
    activations: tuple[int, ...]
    """Positions of the arguments that are activations."""
    weight: int | None = None
    """Position of the constant weight; the op stays float where that argument is not a constant."""
    weight_axis: int = 0
    """The output channels of the weight, for a granularity of ``channel``."""
    fuses: tuple[Operator, ...] = ()
    """Functions that the op absorbs when one of them is its only user: the output is quantized after it."""
    quantizes_output: bool = True
    """Whether the result is an integer tensor; if not, the op reads integers and writes floats."""
    weight_type: IntegerType | None = None
    """Instead of the scheme's own, where this op needs another."""
    activation_types: tuple[IntegerType, ...] | None = None
    """One per position in ``activations``, instead of the scheme's own."""
    result_type: IntegerType | None = None
    """Of the result, instead of the scheme's own."""
    beside: IntegerType | None = None
    """What constants among the activations (numbers, tensors) become; None: the op stays float beside them."""
    any_dims: bool = False
    """Of a mean: over any dimensions, not over all spatial ones alone."""
    grouped: bool = True
    """Whether it does so where channels fall into groups too (depthwise convolutions)."""
    absorbs_sums: tuple[Operator, ...] = ()
    """Sums that the op computes along when one of them is its only user: the other operand is read in integers."""


@dataclass(frozen=True)
class FloatPrefix:
    """Convolutions at the very start of a network that the runtime computes faster in float."""

    reduction: int
    """Those that are not pointwise, sum fewer products than this per output value …"""
    channels: int
    """… and have at most this many output channels."""
    reason: str


@dataclass(frozen=True)
class QuantizationScheme:
    """What a backend runs in INT8 on one device."""

    activation: IntegerType
    weight: IntegerType
    ops: tuple[IntegerOp, ...]
    transparent: tuple[Operator, ...] = ()
    """Operators that hand integers on unchanged: input and output share one scale (max pool, reshape …)."""
    prefix: FloatPrefix | None = None
    min_channels: int = 1
    """Convolutions with fewer input or output channels stay float."""
    in_parts: tuple[Operator, ...] = ()
    """Operators that are written as several ones ahead of quantization, because only these run in integers."""
    stored: tuple[IntegerOp, ...] = ()
    """Operators that compute in float on constant weights that lie in the files as integers."""
    at_run_time: tuple[IntegerOp, ...] = ()
    """Those of ``stored`` that compute in integers all the same where asked to: they choose the scale of what they
    read anew in each call."""

    def find(self, operator: Any) -> IntegerOp | None:
        return next((op for op in self.ops if operator in op.operators), None)
