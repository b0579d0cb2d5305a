"""Functions that an operator computes along with its result: relu and its relatives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from planish.backends.to_tflite.emitter import Emitter
from planish.backends.to_tflite.values import Quantization, Value

aten = torch.ops.aten

CARRIERS = frozenset({
    aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding, aten.linear.default,
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.addmm.default,
})  # fmt: skip
"""Operators whose rules pass ``Emitter.activation`` on."""
CUT_BEHIND = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input})
"""Those that do not, and whose integer results end at the bounds all the same."""
NAMES = {
    (-math.inf, math.inf): "NONE", (0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1",
}  # fmt: skip
_CODES = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}

Bounds = tuple[float, float]


def code(name: str) -> int:
    """The number of a fused function in the options of an operator."""
    return _CODES[name]


def bounds(node: fx.Node) -> Bounds | None:
    """Where ``node`` cuts its argument off; None if it does something else, or its bounds are computed."""
    found = {
        aten.relu.default: (0, None), aten.relu6.default: (0, 6), aten.hardtanh.default: (-1, 1),
        aten.clamp.default: (None, None), aten.clamp_min.default: (None, None), aten.clamp_max.default: (None, None),
    }.get(node.target)  # type: ignore[call-overload]  # fmt: skip
    if found is None:
        return None
    low, high = found
    given = [*node.args[1:]]
    if node.target is aten.clamp_max.default:
        given = [None, *given]
    low = given[0] if given else node.kwargs.get("min", low)
    high = given[1] if len(given) > 1 else node.kwargs.get("max", high)
    if not all(bound is None or isinstance(bound, (int, float)) for bound in (low, high)):
        return None
    return _number_or(low, -math.inf), _number_or(high, math.inf)


def _number_or(bound: Any, otherwise: float) -> float:
    return otherwise if bound is None else float(bound)


def following(node: fx.Node) -> tuple[fx.Node, Bounds] | None:
    """The only reader of ``node``, if it cuts its values off."""
    user = next(iter(node.users), None)
    if node.target not in CARRIERS | CUT_BEHIND or len(node.users) != 1 or user is None:
        return None
    found = bounds(user)
    return (user, found) if found is not None else None


def within(limits: Bounds, quantization: Quantization) -> bool:
    """Whether no integer of ``quantization`` stands for a number outside of ``limits``."""
    low, high = _integers(limits, quantization)
    return low <= -128 and high >= 127


def _integers(limits: Bounds, quantization: Quantization) -> tuple[float, float]:
    (scale,), (zero,) = quantization.scales, quantization.zeros
    return tuple(  # type: ignore[return-value]
        limit if math.isinf(limit) else round(limit / scale) + zero for limit in limits
    )


def cut(e: Emitter, x: Value, limits: Bounds) -> Value:
    """``x`` cut off at ``limits``, integers as integers."""
    name = NAMES.get(limits)
    if name is not None and name != "NONE" and x.quantization is None:
        return e.op(name, x)
    if limits == (0.0, 1.0) and x.quantization is None:
        return e.op("RELU_0_TO_1", x)
    for kind, limit in zip(("MAXIMUM", "MINIMUM"), limits, strict=True):
        if not math.isinf(limit):
            x = e.move(kind, x, _number(e, limit, x))
    return x


def _number(e: Emitter, limit: float, x: Value) -> Any:
    if x.quantization is None:
        return e.numbers(limit if x.dtype.is_floating_point else int(limit), x.dtype)
    integer = int(min(max(_integers((limit, limit), x.quantization)[0], -128), 127))
    key = ("limit", integer, x.quantization)
    return e.made(key, (), torch.int8, lambda: torch.tensor(integer, dtype=torch.int8), quantization=x.quantization)
