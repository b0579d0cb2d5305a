"""Functions of one operand, value by value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.activations import bounds, code, cut
from planish.backends.to_tflite.emitter import FIXED_RESULTS, Emitter, Rule
from planish.backends.to_tflite.rules_arithmetic import integer_number, number, operands, scaled, truncated
from planish.backends.to_tflite.rules_shape import cut_out
from planish.backends.to_tflite.values import Quantization, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def unary(kind: str, **options: Any) -> Rule:
    def rule(e: Emitter, x: Any, **_: Any) -> Value:
        return e.compute(kind, *operands(e, x), **options)

    return rule


def made_of(make: Callable[[Emitter, Value], Value]) -> Rule:
    """A function that TFLite lacks, from those it has; the argument is in the dtype of the result."""
    return lambda e, x, *_, **__: make(e, operands(e, x)[0])


def clipped(e: Emitter, x: Value, *given: Any, **named: Any) -> Value:
    limits = bounds(e.node)
    if limits is not None:
        return cut(e, x if x.quantization else e.cast(x, e.result_dtype()), limits)  # type: ignore[arg-type]
    low, high = named.get("min", given[0] if given else None), named.get("max", given[1] if len(given) > 1 else None)
    low, high = (None, low) if e.node.target is aten.clamp_max.Tensor else (low, high)
    x = x if low is None else e.op("MAXIMUM", *operands(e, x, low))
    return x if high is None else e.op("MINIMUM", *operands(e, x, high))


def keep(e: Emitter, x: Any, *_: Any, **__: Any) -> Any:
    """Operators that only matter in training or in memory: the value itself."""
    return x


def gelu(e: Emitter, x: Value, approximate: str = "none") -> Value:
    return e.compute("GELU", x, approximate=approximate == "tanh")


def hardsigmoid(e: Emitter, x: Value) -> Value:
    """relu6(x + 3) / 6. In integers, 0 .. 255 stand for 0 .. 6 in between."""
    if e.result is not None:
        between = e.op("ADD", x, integer_number(e, 3.0), quantization=Quantization((6 / 255,), (-128,)))
        return e.compute("MUL", between, integer_number(e, 1 / 6))
    shifted = e.op("ADD", x, e.numbers(3.0, x.dtype), fusedActivationFunction=code("RELU6"))
    return number(e, "MUL", shifted, 1 / 6)


def silu(e: Emitter, x: Value) -> Value:
    """The product of x and its sigmoid."""
    gate = e.op("LOGISTIC", x, quantization=FIXED_RESULTS["LOGISTIC"] if e.result is not None else None)
    return e.compute("MUL", x, gate)


def leaky_relu(e: Emitter, x: Value, slope: float = 0.01) -> Value:
    return e.compute("LEAKY_RELU", x, alpha=float(slope))


def rrelu(e: Emitter, x: Value, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any) -> Value:
    return leaky_relu(e, x, (lower + upper) / 2)


def prelu(e: Emitter, x: Value, slope: Any) -> Value:
    """PRELU wants a slope for each channel; the batch has none."""
    if not isinstance(slope, Tensor):
        raise e.fail("prelu with computed slopes")
    rank = len(x.order)
    sizes = [1] * rank
    if rank > 1:
        sizes[1] = slope.numel()
    x, given = e.aligned(x, slope.reshape(sizes) if rank > 1 else slope)
    positive, negative = e.op("RELU", x), e.op("MINIMUM", x, e.numbers(0.0, x.dtype))
    return e.op("ADD", positive, e.op("MUL", negative, given))


def elu(e: Emitter, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    """Scale * (relu(x) + alpha * (exp(min(x, 0) * input_scale) - 1)); ELU is that with ones."""
    if alpha == scale == input_scale == 1:
        return e.compute("ELU", x)
    below = e.op("MINIMUM", number(e, "MUL", x, input_scale), e.numbers(0.0, x.dtype))
    negative = number(e, "MUL", e.op("ELU", below), float(alpha))
    return number(e, "MUL", e.op("ADD", e.op("RELU", x), negative), float(scale))


def selu(e: Emitter, x: Value) -> Value:
    return elu(e, x, 1.6732632423543772, 1.0507009873554805)


def celu(e: Emitter, x: Value, alpha: float = 1.0) -> Value:
    return elu(e, x, alpha, input_scale=1 / alpha)


def softplus(e: Emitter, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    """max(z, 0) + log(1 + exp(-|z|)), z = beta * x: no overflow."""
    z = x if beta == 1 else number(e, "MUL", x, float(beta))
    tail = e.op("LOG", number(e, "ADD", e.op("EXP", e.op("NEG", e.op("ABS", z))), 1.0))
    y = e.op("ADD", e.op("RELU", z), tail)
    return y if beta == 1 else number(e, "MUL", y, 1 / beta)


def threshold(e: Emitter, x: Value, limit: float, value: float) -> Value:
    above = e.op("GREATER", x, e.numbers(limit, x.dtype), dtype=torch.bool)
    return e.op("SELECT_V2", above, x, e.numbers(value, x.dtype), dtype=x.dtype)


def hardshrink(e: Emitter, x: Value, limit: float = 0.5) -> Value:
    above = e.op("GREATER", e.op("ABS", x), e.numbers(float(limit), x.dtype), dtype=torch.bool)
    return e.op("SELECT_V2", above, x, e.numbers(0.0, x.dtype), dtype=x.dtype)


def softshrink(e: Emitter, x: Value, limit: float = 0.5) -> Value:
    return e.op("MUL", e.op("SIGN", x), e.op("RELU", number(e, "SUB", e.op("ABS", x), float(limit))))


def erf(e: Emitter, x: Value) -> Value:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: off by 1.5e-7 at most."""
    size = e.op("ABS", x)
    t = e.op("DIV", e.numbers(1.0, x.dtype), number(e, "ADD", number(e, "MUL", size, 0.3275911), 1.0))
    total = number(e, "MUL", t, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        total = e.op("MUL", number(e, "ADD", total, factor), t)
    rest = e.op("MUL", total, e.op("EXP", e.op("NEG", e.op("SQUARE", x))))
    return e.op("MUL", e.op("SIGN", x), e.op("SUB", e.numbers(1.0, x.dtype), rest))


def reciprocal(e: Emitter, x: Value) -> Value:
    return e.op("DIV", e.numbers(1.0, x.dtype), x)


def arc(y: Callable[[Emitter, Value], Value], x: Callable[[Emitter, Value], Value]) -> Rule:
    """The angle of the point (x, y)."""
    return made_of(lambda e, z: e.op("ATAN2", y(e, z), x(e, z)))


def _same(e: Emitter, x: Value) -> Value:
    return x


def _other_side(e: Emitter, x: Value) -> Value:
    """sqrt(1 - x²)."""
    one = e.op("SUB", e.numbers(1.0, x.dtype), e.op("SQUARE", x))
    return e.op("SQRT", one)


def _ones(e: Emitter, x: Value) -> Value:
    return number(e, "ADD", number(e, "MUL", x, 0.0), 1.0)


def exponentials(kind: str) -> Rule:
    """(exp(x) -+ exp(-x)) / 2."""

    def rule(e: Emitter, x: Any) -> Value:
        (x,) = operands(e, x)
        return number(e, "MUL", e.op(kind, e.op("EXP", x), e.op("EXP", e.op("NEG", x))), 0.5)

    return rule


def _log_with_root(e: Emitter, x: Value, shift: float) -> Value:
    """log(x + sqrt(x² + shift))."""
    return e.op("LOG", e.op("ADD", x, e.op("SQRT", number(e, "ADD", e.op("SQUARE", x), shift))))


def atanh(e: Emitter, x: Value) -> Value:
    one = e.numbers(1.0, x.dtype)
    return number(e, "MUL", e.op("LOG", e.op("DIV", e.op("ADD", one, x), e.op("SUB", one, x))), 0.5)


def glu(e: Emitter, x: Value, dim: int = -1) -> Value:
    half = x.sizes[dim] // 2
    return e.op("MUL", cut_out(e, x, dim, 0, half), e.op("LOGISTIC", cut_out(e, x, dim, half, half)))


def hypot(e: Emitter, a: Any, b: Any) -> Value:
    a, b = operands(e, a, b)
    return e.op("SQRT", e.op("ADD", e.op("SQUARE", a), e.op("SQUARE", b)))


def bitwise_not(e: Emitter, x: Value) -> Value:
    """Of whole numbers -x - 1."""
    return e.op("LOGICAL_NOT", x) if x.dtype is torch.bool else number(e, "SUB", e.op("NEG", x), 1)


def lerp(e: Emitter, start: Any, end: Any, weight: Any) -> Value:
    a, b, share = operands(e, start, end, weight)
    return e.op("ADD", a, e.op("MUL", share, e.op("SUB", b, a)))


def fused_product(kind: str) -> Rule:
    """Addcmul and addcdiv: x + value * a (*|/) b."""

    def rule(e: Emitter, x: Any, a: Any, b: Any, value: float = 1) -> Value:
        total, left, right = operands(e, x, a, b)
        return e.op("ADD", total, scaled(e, e.op(kind, left, right), value))

    return rule


def log_softmax(e: Emitter, x: Any, dim: int, *_: Any) -> Value:
    (x,) = operands(e, x)
    return e.compute("LOG_SOFTMAX", e.with_last(x, dim))


def softmax(e: Emitter, x: Any, dim: int, *_: Any) -> Value:
    (x,) = operands(e, x)
    return e.compute("SOFTMAX", e.with_last(x, dim), beta=1.0)


def predicate(make: Callable[[Emitter, Value], Value], integers: bool) -> Rule:
    """A question that only floating-point values can raise; ``integers`` is the answer for all others."""

    def rule(e: Emitter, x: Value) -> Value:
        if x.dtype.is_floating_point:
            return make(e, x)
        return e.op("EQUAL" if integers else "NOT_EQUAL", x, x, dtype=torch.bool)

    return rule


def is_infinite(e: Emitter, x: Value) -> Value:
    return e.op("EQUAL", e.op("ABS", x), e.numbers(math.inf, x.dtype), dtype=torch.bool)


def is_finite(e: Emitter, x: Value) -> Value:
    return e.op("LESS", e.op("ABS", x), e.numbers(math.inf, x.dtype), dtype=torch.bool)


RULES: dict[Operator, Rule] = {
    **dict.fromkeys(
        (
            aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clip.default,
            aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_min.Tensor, aten.clamp_max.default,
            aten.clamp_max.Tensor,
        ),
        clipped,
    ),
    aten.sigmoid.default: unary("LOGISTIC"), aten.tanh.default: unary("TANH"), aten.gelu.default: gelu,
    aten.silu.default: silu,
    aten.hardswish.default: unary("HARD_SWISH"), aten.hardsigmoid.default: hardsigmoid,
    aten.leaky_relu.default: leaky_relu, aten.prelu.default: prelu, aten.elu.default: elu, aten.selu.default: selu,
    aten.celu.default: celu, aten.softplus.default: softplus,
    aten.mish.default: lambda e, x: e.op("MUL", x, e.op("TANH", softplus(e, x))),
    aten.log_sigmoid.default: lambda e, x: e.op("NEG", softplus(e, e.op("NEG", x))),
    aten.threshold.default: threshold, aten.hardshrink.default: hardshrink, aten.softshrink.default: softshrink,
    aten.softmax.int: softmax, aten._softmax.default: softmax, aten.log_softmax.int: log_softmax,
    aten._log_softmax.default: log_softmax,
    aten.exp.default: unary("EXP"), aten.log.default: unary("LOG"), aten.sqrt.default: unary("SQRT"),
    aten.rsqrt.default: unary("RSQRT"), aten.square.default: unary("SQUARE"), aten.sin.default: unary("SIN"),
    aten.cos.default: unary("COS"), aten.abs.default: unary("ABS"), aten.neg.default: unary("NEG"),
    aten.sign.default: unary("SIGN"), aten.erf.default: made_of(erf), aten.reciprocal.default: made_of(reciprocal),
    aten.erfc.default: made_of(lambda e, x: e.op("SUB", e.numbers(1.0, x.dtype), erf(e, x))),
    aten.floor.default: made_of(lambda e, x: e.op("FLOOR", x) if x.dtype.is_floating_point else x),
    aten.ceil.default: made_of(lambda e, x: e.op("CEIL", x) if x.dtype.is_floating_point else x),
    aten.round.default: made_of(lambda e, x: e.op("ROUND", x) if x.dtype.is_floating_point else x),
    aten.trunc.default: made_of(truncated),
    aten.frac.default: made_of(lambda e, x: e.op("SUB", x, truncated(e, x))),
    aten.log2.default: made_of(lambda e, x: number(e, "MUL", e.op("LOG", x), 1 / math.log(2))),
    aten.log10.default: made_of(lambda e, x: number(e, "MUL", e.op("LOG", x), 1 / math.log(10))),
    aten.log1p.default: made_of(lambda e, x: e.op("LOG", number(e, "ADD", x, 1.0))),
    aten.expm1.default: made_of(lambda e, x: number(e, "SUB", e.op("EXP", x), 1.0)),
    aten.exp2.default: made_of(lambda e, x: e.op("EXP", number(e, "MUL", x, math.log(2)))),
    aten.tan.default: made_of(lambda e, x: e.op("DIV", e.op("SIN", x), e.op("COS", x))),
    aten.asin.default: arc(_same, _other_side), aten.acos.default: arc(_other_side, _same),
    aten.atan.default: arc(_same, _ones),
    aten.asinh.default: made_of(
        lambda e, x: e.op("MUL", e.op("SIGN", x), _log_with_root(e, e.op("ABS", x), 1.0))
    ),
    aten.acosh.default: made_of(lambda e, x: _log_with_root(e, x, -1.0)),
    aten.atanh.default: made_of(atanh), aten.glu.default: glu, aten.hypot.default: hypot,
    aten.bitwise_not.default: bitwise_not, aten.lerp.Scalar: lerp, aten.lerp.Tensor: lerp,
    aten.addcmul.default: fused_product("MUL"), aten.addcdiv.default: fused_product("DIV"),
    aten.rrelu_with_noise_functional.default: lambda e, x, noise, *bounds: [rrelu(e, x, *bounds), None],
    aten.rrelu.default: rrelu,
    aten.sinh.default: exponentials("SUB"), aten.cosh.default: exponentials("ADD"),
    aten.isnan.default: predicate(lambda e, x: e.op("NOT_EQUAL", x, x, dtype=torch.bool), integers=False),
    aten.isinf.default: predicate(is_infinite, integers=False),
    aten.isfinite.default: predicate(is_finite, integers=True),
    **dict.fromkeys(
        (
            aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
            aten.feature_alpha_dropout.default, aten.detach.default, aten.detach_.default, aten.clone.default,
            aten.contiguous.default, aten.alias.default, aten.lift_fresh_copy.default, aten.positive.default,
        ),
        keep,
    ),
}  # fmt: skip
