"""Quantize and dequantize: the ``quantized_decomposed`` operators of PT2E as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import importlib
from typing import Any, TypeGuard

import torch
from torch import fx

from planish.backends.to_onnx.emitter import Emitter, Rule, Value
from planish.compiler.scheme import Operator

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
decomposed = torch.ops.quantized_decomposed

QUANTIZE = (decomposed.quantize_per_tensor.default, decomposed.quantize_per_channel.default)
DEQUANTIZE = (decomposed.dequantize_per_tensor.default, decomposed.dequantize_per_channel.default)


def is_dequantize(node: Any) -> TypeGuard[fx.Node]:
    return isinstance(node, fx.Node) and node.target in DEQUANTIZE


def quantize_per_tensor(
    e: Emitter, x: Value, scale: float, zero: int, low: int, high: int, dtype: torch.dtype, **_: Any
) -> Value:
    _whole_range(e, low, high, dtype)
    parameters = e.constant(scale, torch.float32), e.constant(zero, dtype)
    flatten = x.producer()
    pool = flatten.inputs[0].producer() if flatten is not None and flatten.op_type == "Flatten" else None  # type: ignore[union-attr]
    if pool is not None and pool.op_type == "GlobalAveragePool":
        # ONNX Runtime pools integers only where the quantization follows the pool at once
        return e.op("Flatten", e.op("QuantizeLinear", pool.outputs[0], *parameters), axis=1)
    return e.op("QuantizeLinear", x, *parameters)


def dequantize_per_tensor(
    e: Emitter, x: Value, scale: float, zero: int, low: int, high: int, dtype: torch.dtype, **_: Any
) -> Value:
    return e.op("DequantizeLinear", x, e.constant(scale, torch.float32), e.constant(zero, dtype))


def per_channel(kind: str) -> Rule:
    def rule(
        e: Emitter, x: Value, scales: Value, zeros: Any, axis: int, low: int, high: int, dtype: torch.dtype, **_: Any
    ) -> Value:
        if kind == "QuantizeLinear":
            _whole_range(e, low, high, dtype)
        return e.op(kind, x, *_scales_and_zeros(e, e.node, dtype), axis=axis)

    return rule


def _whole_range(e: Emitter, low: int, high: int, dtype: torch.dtype) -> None:
    """QuantizeLinear saturates at the ends of its type, nowhere else."""
    limits = torch.iinfo(dtype)
    if (low, high) != (limits.min, limits.max) and dtype.is_signed is False:
        raise e.fail(f"quantizing to {low}..{high}: QuantizeLinear has {limits.min}..{limits.max}")


def _scales_and_zeros(e: Emitter, node: fx.Node, dtype: torch.dtype) -> tuple[Value, Value]:
    scales, zeros = (e.program.tensor(node.args[position]) for position in (1, 2))
    if scales is None or zeros is None:
        raise e.fail("scales that are computed")
    scale = e.tensor(scales.to(torch.float32), f"{node.name}.scale")
    return scale, e.constant(zeros.tolist(), dtype)


def dequantized(e: Emitter, node: fx.Node, transposed: bool) -> Value:
    """The dequantized matrix of ``node``, stored transposed: MatMul takes [in, out], torch keeps [out, in]."""
    weight = e.program.tensor(node.args[0])
    if weight is None or not transposed:
        order = [*range(node.meta["val"].ndim - 2), -1, -2] if node.meta["val"].ndim > 2 else [1, 0]
        return e.op("Transpose", e.values[node], perm=order)
    stored = e.tensor_of(weight.t, f"{node.args[0]}.t", weight)
    if node.target is DEQUANTIZE[0]:
        _, scale, zero, _, _, dtype = node.args[:6]
        return e.op("DequantizeLinear", stored, e.constant(scale, torch.float32), e.constant(zero, dtype))  # type: ignore[arg-type]
    scales, zeros = _scales_and_zeros(e, node, node.args[6])  # type: ignore[arg-type]
    return e.op("DequantizeLinear", stored, scales, zeros, axis=1 - int(node.args[3]))  # type: ignore[arg-type]


RULES: dict[Operator, Rule] = {
    decomposed.quantize_per_tensor.default: quantize_per_tensor,
    decomposed.dequantize_per_tensor.default: dequantize_per_tensor,
    decomposed.quantize_per_channel.default: per_channel("QuantizeLinear"),
    decomposed.dequantize_per_channel.default: per_channel("DequantizeLinear"),
}
