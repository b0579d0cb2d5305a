"""Normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def batch_norm(
    e: Emitter, x: Value, weight: Value | None, bias: Value | None, mean: Value | None, var: Value | None,
    training: bool, momentum: float, eps: float, cudnn: bool,
) -> Value:  # fmt: skip
    if mean is None or training:
        return _batch_statistics(e, x, weight, bias, eps)
    weight, bias = _scale_and_shift(e, weight, bias)
    return e.op("BatchNormalization", x, weight, bias, mean, var, epsilon=float(eps))


def _scale_and_shift(e: Emitter, weight: Value | None, bias: Value | None) -> tuple[Value, Value]:
    channels, dtype = int(e.fake(0).shape[1]), e.fake(0).dtype
    return (
        weight if weight is not None else e.constant([1.0] * channels, dtype),
        bias if bias is not None else e.constant([0.0] * channels, dtype),
    )


def _batch_statistics(e: Emitter, x: Value, weight: Value | None, bias: Value | None, eps: float) -> Value:
    """A batch norm without running statistics normalizes with those of the batch, in evaluation too."""
    rank = e.fake(0).ndim
    axes = e.constant([0, *range(2, rank)])
    centred = e.op("Sub", x, e.op("ReduceMean", x, axes, keepdims=1))
    spread = e.op("ReduceMean", e.op("Mul", centred, centred), axes, keepdims=1)
    y = e.op("Div", centred, e.op("Sqrt", e.op("Add", spread, e.constant(eps, e.fake(0).dtype))))
    if weight is not None:
        y = e.op("Mul", y, e.channelwise(weight, rank - 2))
    return y if bias is None else e.op("Add", y, e.channelwise(bias, rank - 2))


def layer_norm(
    e: Emitter, x: Value, shape: Sequence[int], weight: Value | None = None, bias: Value | None = None,
    eps: float = 1e-5, cudnn: bool = True,
) -> Value:  # fmt: skip
    scale = weight if weight is not None else e.tensor(torch.ones(*shape, dtype=e.fake(0).dtype), "ones")
    return e.op("LayerNormalization", x, scale, bias, axis=-len(shape), epsilon=float(eps))


def group_norm(
    e: Emitter,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Value:
    """InstanceNormalization over [N, groups, rest], then scale and shift per channel."""
    fake, dtype = e.fake(0), e.fake(0).dtype
    grouped = e.op("Reshape", x, e.constant([0, groups, -1]))
    ones, zeros = e.constant([1.0] * groups, dtype), e.constant([0.0] * groups, dtype)
    normal = e.op("InstanceNormalization", grouped, ones, zeros, epsilon=float(eps))
    shape = [0, *(s if isinstance(s, int) else -1 for s in fake.shape[1:])]
    y = e.op("Reshape", normal, e.op("Shape", x) if shape.count(-1) > 1 else e.constant(shape))
    if weight is not None:
        y = e.op("Mul", y, e.channelwise(weight, fake.ndim - 2))
    return y if bias is None else e.op("Add", y, e.channelwise(bias, fake.ndim - 2))


def instance_norm(
    e: Emitter, x: Value, weight: Value | None, bias: Value | None, mean: Any, var: Any, use_input_stats: bool,
    momentum: float, eps: float, cudnn: bool,
) -> Value:  # fmt: skip
    if not use_input_stats:
        return batch_norm(e, x, weight, bias, mean, var, False, momentum, eps, cudnn)
    weight, bias = _scale_and_shift(e, weight, bias)
    return e.op("InstanceNormalization", x, weight, bias, epsilon=float(eps))


def rms_norm(
    e: Emitter, x: Value, shape: Sequence[int], weight: Value | None = None, eps: float | None = None
) -> Value:
    dtype = e.fake(0).dtype
    axes = e.constant([*range(-len(shape), 0)])
    power = e.op("ReduceMean", e.op("Mul", x, x), axes, keepdims=1)
    epsilon = torch.finfo(dtype).eps if eps is None else eps
    normal = e.op("Div", x, e.op("Sqrt", e.op("Add", power, e.constant(epsilon, dtype))))
    return normal if weight is None else e.op("Mul", normal, weight)


def native_layer_norm(
    e: Emitter, x: Value, shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> list[Any]:
    return [layer_norm(e, x, shape, weight, bias, eps), None, None]


def native_group_norm(
    e: Emitter,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    batch: Any,
    channels: Any,
    size: Any,
    groups: int,
    eps: float,
) -> list[Any]:
    return [group_norm(e, x, groups, weight, bias, eps), None, None]


def native_batch_norm(
    e: Emitter, x: Value, weight: Value | None, bias: Value | None, mean: Value, var: Value, momentum: float, eps: float
) -> list[Any]:
    return [batch_norm(e, x, weight, bias, mean, var, False, momentum, eps, False), None, None]


def native_batch_statistics(
    e: Emitter, x: Value, weight: Value | None, bias: Value | None, training: bool, momentum: float, eps: float
) -> list[Any]:
    return [_batch_statistics(e, x, weight, bias, eps), None, None]


def weight_norm(e: Emitter, direction: Value, length: Value, dim: int = 0) -> Value:
    axes = [axis for axis in range(e.fake(0).ndim) if axis != dim % e.fake(0).ndim]
    norm = e.op("ReduceL2", direction, e.constant(axes), keepdims=1)
    return e.op("Mul", direction, e.op("Div", length, norm))


RULES: dict[Operator, Rule] = {
    aten.batch_norm.default: batch_norm, aten.layer_norm.default: layer_norm, aten.group_norm.default: group_norm,
    aten.instance_norm.default: instance_norm, aten.rms_norm.default: rms_norm,
    aten.native_layer_norm.default: native_layer_norm, aten.native_group_norm.default: native_group_norm,
    aten._native_batch_norm_legit_no_training.default: native_batch_norm,
    aten._native_batch_norm_legit.no_stats: native_batch_statistics, aten._weight_norm.default: weight_norm,
}  # fmt: skip
