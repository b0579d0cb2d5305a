"""Which nodes compute on integers: what they read is quantized, and so is their result."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, fx

from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.values import Quantization, Value
from planish.compiler.scheme import Operator

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
decomposed = torch.ops.quantized_decomposed
aten = torch.ops.aten

QUANTIZE = decomposed.quantize_per_tensor.default
DEQUANTIZE = decomposed.dequantize_per_tensor.default
DEQUANTIZE_CHANNELS = decomposed.dequantize_per_channel.default
CHOOSE_SCALES = (decomposed.choose_qparams.tensor, decomposed.choose_qparams_per_token_asymmetric.default)
QUANTIZE_AT_RUN_TIME = (decomposed.quantize_per_tensor.tensor, decomposed.quantize_per_token.default)
DEQUANTIZE_AT_RUN_TIME: dict[Any, frozenset[Operator]] = {
    decomposed.dequantize_per_tensor.tensor: frozenset({
        aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding,
    }),
    decomposed.dequantize_per_token.default: frozenset({aten.linear.default}),
}  # fmt: skip
"""Operators that choose scales themselves: convolutions one for an image, layers one for each row."""

COMPUTING: frozenset[Operator] = frozenset({
    aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding, aten.linear.default,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor,
    aten.cat.default, aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.hardswish.default, aten.leaky_relu.default,
    aten.gelu.default, aten.sigmoid.default, aten.tanh.default, aten.silu.default, aten.hardsigmoid.default,
    aten.softmax.int, aten.matmul.default, aten.rsqrt.default,
})  # fmt: skip
"""Operators whose rules write those that TFLite has for INT8, with a scale of its own for the result."""
WEIGHTS: dict[Any, int] = {
    aten.conv1d.default: 1, aten.conv2d.default: 1, aten.conv1d.padding: 1, aten.conv2d.padding: 1,
    aten.linear.default: 1, aten.embedding.default: 0, aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 1, aten.mm.default: 1, aten.matmul.default: 1, aten.addmm.default: 2,
}  # fmt: skip
"""Operators whose rules take constant integers as weights -> the argument that they are."""
_OF_TWO = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.matmul.default)
MOVING: frozenset[Operator] = frozenset({
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.reshape.default, aten.flatten.using_ints, aten.view.default,
    aten.permute.default, aten.transpose.int, aten.t.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.unsqueeze.default, aten.slice.Tensor, aten.pad.default, aten.constant_pad_nd.default,
    aten.pixel_shuffle.default, aten.dropout.default, aten.clone.default, aten.contiguous.default,
    aten.select.int, aten.detach.default, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default,
    aten.unbind.int,
})  # fmt: skip
"""Operators whose result has the scale of what they read."""


def quantize(e: Emitter, x: Any, scale: float, zero: int, low: int, high: int, dtype: torch.dtype, **_: Any) -> Value:
    if dtype is not torch.int8 or low not in (-128, -127) or high != 127:
        raise e.fail(f"activations in {dtype} {low}..{high}: TFLite computes in int8")
    return e.quantized(e.value(x), Quantization((scale,), (zero,)))


def dequantize(e: Emitter, x: Any, scale: float, zero: int, low: int, high: int, dtype: torch.dtype, **_: Any) -> Value:
    """The integers themselves, which stand for the real numbers: DEQUANTIZE comes where a float is needed."""
    if isinstance(x, Value):
        return x
    return _constant(e, x, Quantization((float(scale),), (int(zero),)))


def dequantize_channels(
    e: Emitter, x: Any, scales: Tensor, zeros: Tensor, axis: int, low: int, high: int, dtype: torch.dtype, **_: Any
) -> Value:
    if not isinstance(x, Tensor):
        raise e.fail("computed values with a scale for each channel")
    return _constant(e, x, Quantization(tuple(scales.tolist()), tuple(map(int, zeros.tolist())), axis))


def _constant(e: Emitter, x: Tensor, quantization: Quantization) -> Value:
    if x.dtype is not torch.int8:
        raise e.fail(f"weights in {x.dtype}: TFLite has int8")
    return e.made((id(x), quantization), x.shape, torch.int8, lambda: x.detach(), quantization=quantization)


def quantize_at_run_time(e: Emitter, x: Any, *_: Any, **__: Any) -> Any:
    """The float itself: the operator that reads it quantizes it."""
    return e.real(x)


def dequantize_at_run_time(e: Emitter, x: Any, *_: Any, **__: Any) -> Any:
    for reader in e.node.users:
        known = reader.target in DEQUANTIZE_AT_RUN_TIME[e.node.target] and reader.args[0] is e.node
        weight = reader.args[1] if known else None
        if not isinstance(weight, fx.Node) or weight.target not in (DEQUANTIZE, DEQUANTIZE_CHANNELS):
            raise e.fail("scales chosen at run time for what is no layer or convolution with integer weights")
    return x


def computes_at_run_time(node: fx.Node) -> bool:
    """Whether ``node`` quantizes what it reads in each call."""
    source = node.args[0]
    return isinstance(source, fx.Node) and source.target in DEQUANTIZE_AT_RUN_TIME


def result_quantization(node: fx.Node, activation: fx.Node | None) -> Quantization | None:
    """What the result of ``node`` (behind ``activation``, which it computes along) is quantized with at once."""
    users = [*(activation or node).users]
    if not users or any(user.target is not QUANTIZE for user in users):
        return None
    found = {(user.args[1], user.args[2]) for user in users}
    if len(found) > 1:
        return None
    ((scale, zero),) = found
    return Quantization((float(scale),), (int(zero),))  # type: ignore[arg-type]


def reads_integers(node: fx.Node, args: Any) -> bool:
    """Whether all computed tensors among the arguments are quantized, and there is one.

    A number beside them is one of them; a float tensor (a mean of pixels) keeps the node in float.
    """
    float_beside = node.target in _OF_TWO and any(isinstance(arg, Tensor) for arg in args[:2])
    if float_beside or node.kwargs.get("alpha", 1) != 1:
        return False
    values = [value for value in torch.utils._pytree.tree_leaves(args) if isinstance(value, Value)]
    computed = [value for value in values if value.stored.data is None]
    return bool(computed) and all(value.quantization is not None for value in values)


RULES: dict[Any, Rule] = {
    QUANTIZE: quantize, DEQUANTIZE: dequantize, DEQUANTIZE_CHANNELS: dequantize_channels,
    **dict.fromkeys(CHOOSE_SCALES, lambda e, *_: [None, None]),
    **dict.fromkeys(QUANTIZE_AT_RUN_TIME, quantize_at_run_time),
    **dict.fromkeys(DEQUANTIZE_AT_RUN_TIME, dequantize_at_run_time),
}  # fmt: skip
