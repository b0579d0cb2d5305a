"""Normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_arithmetic import number, operands
from planish.backends.to_tflite.rules_reduce import reduce
from planish.backends.to_tflite.values import Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def batch_norm(
    e: Emitter, x: Value, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float,
    *_: Any,
) -> Value:  # fmt: skip
    """A factor and a shift for each channel; without running statistics those of the batch, in evaluation too."""
    if mean is None or training:
        axes = [0, *range(2, len(x.order))]
        return scaled_and_shifted(e, normalized(e, x, axes, eps), _channelwise(e, weight, x), _channelwise(e, bias, x))
    factor = 1 / torch.sqrt(var.detach() + eps)
    factor = factor if weight is None else factor * weight.detach()
    shift = -mean.detach() * factor
    shift = shift if bias is None else shift + bias.detach()
    return scaled_and_shifted(e, x, _channelwise(e, factor, x), _channelwise(e, shift, x))


def _channelwise(e: Emitter, vector: Any, x: Value) -> Any:
    """[C] as [C, 1, …]: it broadcasts against [N, C, …]."""
    if vector is None:
        return None
    return e.reshape(
        vector, (vector.shape[0] if isinstance(vector, Tensor) else vector.sizes[0], *[1] * (len(x.order) - 2))
    )


def scaled_and_shifted(e: Emitter, x: Value, weight: Any, bias: Any) -> Value:
    if weight is not None:
        x = e.op("MUL", *operands(e, x, weight))
    return x if bias is None else e.op("ADD", *operands(e, x, bias))


def normalized(e: Emitter, x: Value, dims: Sequence[int], eps: float) -> Value:
    """(x - mean) / sqrt(variance + eps) over ``dims``."""
    centred = e.op("SUB", x, reduce(e, "MEAN", x, dims, keepdim=True))
    spread = reduce(e, "MEAN", e.op("SQUARE", centred), dims, keepdim=True)
    return e.op("MUL", centred, e.op("RSQRT", number(e, "ADD", spread, float(eps))))


def layer_norm(
    e: Emitter, x: Value, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Value:
    rank = len(x.order)
    return scaled_and_shifted(e, normalized(e, x, range(rank - len(shape), rank), eps), weight, bias)


def rms_norm(e: Emitter, x: Value, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Value:
    rank = len(x.order)
    spread = reduce(e, "MEAN", e.op("SQUARE", x), range(rank - len(shape), rank), keepdim=True)
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return scaled_and_shifted(e, e.op("MUL", x, e.op("RSQRT", number(e, "ADD", spread, float(eps)))), weight, None)


def group_norm(
    e: Emitter, x: Value, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Value:
    batch, channels, *inner = x.sizes
    cut = e.reshape(x, (batch, groups, channels // groups, *inner))
    assert isinstance(cut, Value)
    y = e.reshape(normalized(e, cut, range(2, len(cut.order)), eps), x.sizes)
    assert isinstance(y, Value)
    return scaled_and_shifted(e, y, _channelwise(e, weight, x), _channelwise(e, bias, x))


def instance_norm(
    e: Emitter, x: Value, weight: Any, bias: Any, mean: Any, var: Any, use_input_stats: bool, momentum: float,
    eps: float, *_: Any,
) -> Value:  # fmt: skip
    if not use_input_stats:
        return batch_norm(e, x, weight, bias, mean, var, False, momentum, eps)
    y = normalized(e, x, range(2, len(x.order)), eps)
    return scaled_and_shifted(e, y, _channelwise(e, weight, x), _channelwise(e, bias, x))


def native(rule: Rule) -> Rule:
    """What PyTorch's decompositions make of a norm also gives the statistics, which nothing reads in evaluation."""
    return lambda e, *args: [rule(e, *args), None, None]


def native_group_norm(
    e: Emitter, x: Value, weight: Any, bias: Any, batch: int, channels: int, area: int, groups: int, eps: float
) -> list[Any]:
    return [group_norm(e, x, groups, weight, bias, eps), None, None]


def native_batch_norm(
    e: Emitter, x: Value, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> list[Any]:
    return [batch_norm(e, x, weight, bias, mean, var, False, momentum, eps), None, None]


def native_batch_statistics(
    e: Emitter, x: Value, weight: Any, bias: Any, training: bool, momentum: float, eps: float
) -> list[Any]:
    return [batch_norm(e, x, weight, bias, None, None, True, momentum, eps), None, None]


RULES: dict[Operator, Rule] = {
    aten.batch_norm.default: batch_norm, aten.layer_norm.default: layer_norm, aten.rms_norm.default: rms_norm,
    aten.native_layer_norm.default: native(layer_norm), aten.native_group_norm.default: native_group_norm,
    aten._native_batch_norm_legit_no_training.default: native_batch_norm,
    aten._native_batch_norm_legit.no_stats: native_batch_statistics,
    aten.group_norm.default: group_norm, aten.instance_norm.default: instance_norm,
}  # fmt: skip
