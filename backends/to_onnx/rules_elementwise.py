"""Functions of one tensor, value by value: activations, roots, powers, trigonometry."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Value
from planish.backends.to_onnx.rules_arithmetic import truncated
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def unary(kind: str, **attributes: Any) -> Rule:
    def rule(e: Emitter, x: Value, **_: Any) -> Value:
        return e.op(kind, e.floating(x), **attributes)

    return rule


def then(kind: str, number: float, function: str, before: bool = False) -> Rule:
    """``function`` of the input, then ``kind`` with a number; ``before``: the number first."""

    def rule(e: Emitter, x: Value) -> Value:
        x, constant = e.floating(x), e.constant(number, e.result_dtype())
        return e.op(function, e.op(kind, x, constant)) if before else e.op(kind, e.op(function, x), constant)

    return rule


def keep(e: Emitter, x: Value, *_: Any, **__: Any) -> Value:
    """Operators that only matter in training or in memory: the value itself."""
    return x


def rounding(kind: str) -> Rule:
    def rule(e: Emitter, x: Value) -> Value:
        return e.op(kind, x) if e.result_dtype().is_floating_point else x

    return rule


def logical_not(e: Emitter, x: Value) -> Value:
    return e.op("Not", e.cast(x, torch.bool))


def bitwise_not(e: Emitter, x: Value) -> Value:
    return e.op("Not" if e.result_dtype() is torch.bool else "BitwiseNot", x)


def predicate(make: Callable[[Emitter, Value], Value], integers: bool) -> Rule:
    """A question that only floating-point values can raise; ``integers`` is the answer for all others."""

    def rule(e: Emitter, x: Value) -> Value:
        if e.fake(0).dtype.is_floating_point:
            return make(e, x)
        return e.op("Expand", e.constant(integers), e.op("Shape", x))

    return rule


def is_finite(e: Emitter, x: Value) -> Value:
    return e.op("Not", e.op("Or", e.op("IsNaN", x), e.op("IsInf", x)))


def erfc(e: Emitter, x: Value) -> Value:
    return e.op("Sub", e.constant(1.0, e.result_dtype()), e.op("Erf", e.floating(x)))


def rsqrt(e: Emitter, x: Value) -> Value:
    return e.op("Reciprocal", e.op("Sqrt", e.floating(x)))


def clamp(e: Emitter, x: Value, low: Any = None, high: Any = None) -> Value:
    dtype = e.result_dtype()
    if isinstance(low, ir.Value) or isinstance(high, ir.Value):
        x = x if low is None else e.op("Max", x, low)
        return x if high is None else e.op("Min", x, high)
    bounds = [None if bound is None else e.constant(bound, dtype) for bound in (low, high)]
    return e.op("Clip", e.floating(x), *bounds)


def hardtanh(e: Emitter, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    return clamp(e, x, low, high)


def relu6(e: Emitter, x: Value) -> Value:
    return clamp(e, x, 0.0, 6.0)


def gelu(e: Emitter, x: Value, approximate: str = "none") -> Value:
    if e.opset >= 20:
        return e.op("Gelu", x, approximate=approximate)
    dtype = e.result_dtype()
    if approximate == "tanh":
        cube = e.op("Mul", e.op("Mul", x, x), x)
        inner = e.op("Add", x, e.op("Mul", cube, e.constant(0.044715, dtype)))
        gate = e.op("Tanh", e.op("Mul", inner, e.constant(math.sqrt(2 / math.pi), dtype)))
    else:
        gate = e.op("Erf", e.op("Div", x, e.constant(math.sqrt(2.0), dtype)))
    return e.op("Mul", e.op("Mul", x, e.op("Add", gate, e.constant(1.0, dtype))), e.constant(0.5, dtype))


def silu(e: Emitter, x: Value) -> Value:
    return e.op("Mul", x, e.op("Sigmoid", x))


def leaky_relu(e: Emitter, x: Value, slope: float = 0.01) -> Value:
    return e.op("LeakyRelu", x, alpha=float(slope))


def prelu(e: Emitter, x: Value, slope: Value) -> Value:
    return e.op("PRelu", x, e.channelwise(slope, e.fake(0).ndim - 2))


def elu(e: Emitter, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if input_scale != 1:
        raise e.fail("elu with an input scale")
    y = e.op("Elu", x, alpha=float(alpha))
    return y if scale == 1 else e.op("Mul", y, e.constant(scale, e.result_dtype()))


def celu(e: Emitter, x: Value, alpha: float = 1.0) -> Value:
    return e.op("Celu", x, alpha=float(alpha))


def softplus(e: Emitter, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta == 1:
        return e.op("Softplus", x)
    beta_value = e.constant(beta, e.result_dtype())
    return e.op("Div", e.op("Softplus", e.op("Mul", x, beta_value)), beta_value)


def mish(e: Emitter, x: Value) -> Value:
    return e.op("Mul", x, e.op("Tanh", e.op("Softplus", x)))


def log_sigmoid(e: Emitter, x: Value) -> Value:
    return e.op("Neg", e.op("Softplus", e.op("Neg", x)))


def threshold(e: Emitter, x: Value, limit: float, value: float) -> Value:
    above = e.op("Greater", x, e.constant(limit, e.result_dtype()))
    return e.op("Where", above, x, e.constant(value, e.result_dtype()))


def rrelu(e: Emitter, x: Value, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any) -> Value:
    return e.op("LeakyRelu", x, alpha=(lower + upper) / 2)


def hardshrink(e: Emitter, x: Value, limit: float = 0.5) -> Value:
    return e.op("Shrink", x, lambd=float(limit), bias=0.0)


def softshrink(e: Emitter, x: Value, limit: float = 0.5) -> Value:
    return e.op("Shrink", x, lambd=float(limit), bias=float(limit))


def glu(e: Emitter, x: Value, dim: int = -1) -> Value:
    half = int(e.fake(0).shape[dim]) // 2
    a, b = e.multi("Split", 2, x, e.constant([half, half]), axis=dim)
    return e.op("Mul", a, e.op("Sigmoid", b))


def softmax(kind: str) -> Rule:
    def rule(e: Emitter, x: Value, dim: int, dtype: Any = None) -> Value:
        value = x if e.fake(0).dtype is e.result_dtype() else e.cast(x, e.result_dtype())
        if e.fake(0).ndim == 0:
            return e.op("Squeeze", e.op(kind, e.op("Unsqueeze", value, e.constant([0])), axis=0), e.constant([0]))
        return e.op(kind, value, axis=dim)

    return rule


RULES: dict[Operator, Rule] = {
    aten.relu.default: lambda e, x: e.op("Relu", x), aten.relu6.default: relu6, aten.hardtanh.default: hardtanh,
    aten.clamp.default: clamp, aten.clip.default: clamp, aten.clamp.Tensor: clamp,
    aten.clamp_min.default: lambda e, x, low: clamp(e, x, low, None),
    aten.clamp_min.Tensor: lambda e, x, low: clamp(e, x, low, None),
    aten.clamp_max.default: lambda e, x, high: clamp(e, x, None, high),
    aten.clamp_max.Tensor: lambda e, x, high: clamp(e, x, None, high),
    aten.sigmoid.default: unary("Sigmoid"), aten.tanh.default: unary("Tanh"), aten.gelu.default: gelu,
    aten.silu.default: silu, aten.hardswish.default: unary("HardSwish"),
    aten.hardsigmoid.default: unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    aten.leaky_relu.default: leaky_relu, aten.elu.default: elu, aten.selu.default: unary("Selu"),
    aten.celu.default: celu,
    aten.softplus.default: softplus, aten.mish.default: mish, aten.glu.default: glu,
    aten.log_sigmoid.default: log_sigmoid,
    aten.threshold.default: threshold, aten.rrelu.default: rrelu,
    aten.rrelu_with_noise_functional.default: lambda e, x, noise, *bounds: [rrelu(e, x, *bounds), None],
    aten.hardshrink.default: hardshrink, aten.softshrink.default: softshrink,
    aten.softmax.int: softmax("Softmax"), aten.log_softmax.int: softmax("LogSoftmax"),
    aten._softmax.default: softmax("Softmax"), aten._log_softmax.default: softmax("LogSoftmax"),
    aten.prelu.default: prelu, aten._prelu_kernel.default: lambda e, x, slope: e.op("PRelu", x, slope),
    aten.exp.default: unary("Exp"), aten.log.default: unary("Log"), aten.sqrt.default: unary("Sqrt"),
    aten.rsqrt.default: rsqrt,
    aten.log2.default: then("Div", math.log(2), "Log"), aten.log10.default: then("Div", math.log(10), "Log"),
    aten.log1p.default: then("Add", 1.0, "Log", before=True), aten.expm1.default: then("Sub", 1.0, "Exp"),
    aten.exp2.default: then("Mul", math.log(2), "Exp", before=True),
    aten.abs.default: lambda e, x: e.op("Abs", x), aten.neg.default: lambda e, x: e.op("Neg", x),
    aten.sign.default: lambda e, x: e.op("Sign", x), aten.erf.default: unary("Erf"), aten.erfc.default: erfc,
    aten.reciprocal.default: unary("Reciprocal"),
    aten.square.default: lambda e, x: e.op("Mul", x, x),
    aten.sin.default: unary("Sin"), aten.cos.default: unary("Cos"), aten.tan.default: unary("Tan"),
    aten.asin.default: unary("Asin"),
    aten.acos.default: unary("Acos"), aten.atan.default: unary("Atan"), aten.sinh.default: unary("Sinh"),
    aten.cosh.default: unary("Cosh"),
    aten.asinh.default: unary("Asinh"), aten.acosh.default: unary("Acosh"), aten.atanh.default: unary("Atanh"),
    aten.floor.default: rounding("Floor"), aten.ceil.default: rounding("Ceil"), aten.round.default: rounding("Round"),
    aten.trunc.default: truncated, aten.logical_not.default: logical_not, aten.bitwise_not.default: bitwise_not,
    aten.isnan.default: predicate(lambda e, x: e.op("IsNaN", x), integers=False),
    aten.isinf.default: predicate(lambda e, x: e.op("IsInf", x), integers=False),
    aten.isfinite.default: predicate(is_finite, integers=True),
    aten.dropout.default: keep, aten.feature_dropout.default: keep, aten.alpha_dropout.default: keep,
    aten.feature_alpha_dropout.default: keep, aten.detach.default: keep, aten.detach_.default: keep,
    aten.clone.default: keep,
    aten.contiguous.default: keep, aten.alias.default: keep, aten.lift_fresh_copy.default: keep,
    aten.positive.default: keep,
}  # fmt: skip
