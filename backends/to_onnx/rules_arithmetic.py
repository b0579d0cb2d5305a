"""Arithmetic, comparisons and logic of two operands, and arithmetic on sizes."""

from __future__ import annotations

import math
import operator
from typing import Any

import onnx_ir as ir
import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def binary(kind: str) -> Rule:
    """Both sides in the dtype of the result (of their common dtype for comparisons)."""

    def rule(e: Emitter, a: Any, b: Any, **_: Any) -> Value:
        return e.op(kind, *e.promoted(a, b))

    return rule


def add(e: Emitter, a: Any, b: Any, alpha: float = 1) -> Value:
    if e.result_dtype() is torch.bool:
        return e.op("Or", *e.promoted(a, b))
    a, b = e.promoted(a, b)
    if alpha != 1:
        b = e.op("Mul", b, e.constant(alpha, e.result_dtype()))
    # ONNX Runtime fuses Add -> LayerNormalization into SkipLayerNormalization, which takes seven times as long
    # on CPUs (docs/backend-onnx.md has the figures); it leaves Sum alone.
    normalized = any(user.target is aten.layer_norm.default for user in e.node.users)
    return e.op("Sum" if normalized and e.is_float_tensor(e.node) else "Add", a, b)


def sub(e: Emitter, a: Any, b: Any, alpha: float = 1) -> Value:
    a, b = e.promoted(a, b)
    return e.op("Sub", a, b if alpha == 1 else e.op("Mul", b, e.constant(alpha, e.result_dtype())))


def rsub(e: Emitter, a: Any, b: Any, alpha: float = 1) -> Value:
    a, b = e.promoted(a, b)
    return e.op("Sub", b, a if alpha == 1 else e.op("Mul", a, e.constant(alpha, e.result_dtype())))


def multiply(e: Emitter, a: Any, b: Any) -> Value:
    return e.op("And" if e.result_dtype() is torch.bool else "Mul", *e.promoted(a, b))


def div(e: Emitter, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor":
        return floor_divide(e, a, b)
    quotient = e.op("Div", *e.promoted(a, b))  # integers truncate already
    if rounding_mode is None or not e.result_dtype().is_floating_point:
        return quotient
    return truncated(e, quotient)


def truncated(e: Emitter, x: Value) -> Value:
    if not e.result_dtype().is_floating_point:
        return x
    return e.op("Where", e.op("Less", x, e.constant(0.0, e.result_dtype())), e.op("Ceil", x), e.op("Floor", x))


def floor_divide(e: Emitter, a: Any, b: Any) -> Value:
    """For integers (a - a mod b) / b: ONNX divides towards zero, and its Mod has the sign of the divisor."""
    a, b = e.promoted(a, b)
    if e.result_dtype().is_floating_point:
        return e.op("Floor", e.op("Div", a, b))
    return e.op("Div", e.op("Sub", a, e.op("Mod", a, b)), b)


def fmod(e: Emitter, a: Any, b: Any) -> Value:
    return e.op("Mod", *e.promoted(a, b), fmod=1)


def remainder(e: Emitter, a: Any, b: Any) -> Value:
    """The remainder with the sign of the divisor; ONNX has that for integers only."""
    a, b = e.promoted(a, b)
    if not e.result_dtype().is_floating_point:
        return e.op("Mod", a, b)
    rest = e.op("Mod", a, b, fmod=1)
    opposite = e.op("Less", e.op("Mul", rest, b), e.constant(0.0, e.result_dtype()))
    return e.op("Where", opposite, e.op("Add", rest, b), rest)


def power(e: Emitter, base: Any, exponent: Any) -> Value:
    if isinstance(base, ir.Value) and isinstance(exponent, (int, float)):
        base = e.floating(base)
        if exponent == 2:
            return e.op("Mul", base, base)
        if exponent == 0.5:
            return e.op("Sqrt", base)
        return e.op("Pow", base, e.constant(exponent, e.result_dtype()))
    return e.op("Pow", *e.promoted(base, exponent))


def fused_product(kind: str) -> Rule:
    """Addcmul and addcdiv: x + value * a (*|/) b."""

    def rule(e: Emitter, x: Value, a: Value, b: Value, value: float = 1) -> Value:
        product = e.op(kind, a, b)
        return e.op("Add", x, product if value == 1 else e.op("Mul", product, e.constant(value, e.result_dtype())))

    return rule


def lerp(e: Emitter, start: Value, end: Value, weight: Any) -> Value:
    factor = weight if isinstance(weight, ir.Value) else e.constant(weight, e.result_dtype())
    return e.op("Add", start, e.op("Mul", factor, e.op("Sub", end, start)))


def atan2(e: Emitter, y: Value, x: Value) -> Value:
    """atan(y / x), moved by pi into the second and third quadrant; sign(y) * pi / 2 where x is 0."""
    y, x = e.promoted(y, x)
    dtype = e.result_dtype()
    zero, pi = e.constant(0.0, dtype), e.constant(math.pi, dtype)
    below = e.op("Less", y, zero)
    moved = e.op("Where", below, e.op("Neg", pi), pi)
    angle = e.op("Atan", e.op("Div", y, x))
    angle = e.op("Where", e.op("Less", x, zero), e.op("Add", angle, moved), angle)
    on_axis = e.op("Mul", e.op("Sign", y), e.constant(math.pi / 2, dtype))
    return e.op("Where", e.op("Equal", x, zero), on_axis, angle)


def hypot(e: Emitter, a: Value, b: Value) -> Value:
    a, b = e.promoted(a, b)
    return e.op("Sqrt", e.op("Add", e.op("Mul", a, a), e.op("Mul", b, b)))


def copysign(e: Emitter, a: Any, b: Any) -> Value:
    """The sign of zero counts: it is that of the reciprocal."""
    a, b = e.promoted(a, b)
    zero, size = e.constant(0.0, e.result_dtype()), e.op("Abs", a)
    negative = e.op("Or", e.op("Less", b, zero), e.op("Less", e.op("Reciprocal", b), zero))
    return e.op("Where", negative, e.op("Neg", size), size)


def shift(left: bool) -> Rule:
    """X << n is x * 2^n, x >> n is x // 2^n: ONNX shifts unsigned integers only."""

    def rule(e: Emitter, a: Any, b: Any) -> Value:
        a, b = e.promoted(a, b)
        factor = e.cast(e.op("Pow", e.constant(2.0, torch.float64), e.cast(b, torch.float64)), e.result_dtype())
        return e.op("Mul", a, factor) if left else e.op("Div", e.op("Sub", a, e.op("Mod", a, factor)), factor)

    return rule


# ---------------------------------------------------------------------- comparisons and logic


def not_equal(e: Emitter, a: Any, b: Any) -> Value:
    return e.op("Not", e.op("Equal", *e.promoted(a, b)))


def logical(kind: str) -> Rule:
    def rule(e: Emitter, a: Any, b: Any) -> Value:
        sides = (side if isinstance(side, ir.Value) else e.constant(bool(side)) for side in (a, b))
        return e.op(kind, *(e.cast(side, torch.bool) for side in sides))

    return rule


def bitwise(kind: str) -> Rule:
    def rule(e: Emitter, a: Any, b: Any) -> Value:
        return e.op(kind if e.result_dtype() is torch.bool else f"Bitwise{kind}", *e.promoted(a, b))

    return rule


def where(e: Emitter, condition: Value, a: Any, b: Any) -> Value:
    return e.op("Where", condition, *e.promoted(a, b, first=1))


def masked_fill(e: Emitter, x: Value, mask: Value, value: Any) -> Value:
    dtype = e.result_dtype()
    filler = e.cast(value, dtype) if isinstance(value, ir.Value) else e.constant(value, dtype)
    return e.op("Where", mask, filler, x)


def symbolic(kind: str) -> Rule:
    """Arithmetic on sizes: INT64 scalars."""

    def rule(e: Emitter, a: Any, b: Any) -> Value:
        return e.op(kind, e.size(a), e.size(b))

    return rule


RULES: dict[Operator, Rule] = {
    aten.add.Tensor: add, aten.add.Scalar: add, aten.sub.Tensor: sub, aten.sub.Scalar: sub,
    aten.rsub.Scalar: rsub, aten.rsub.Tensor: rsub,
    aten.mul.Tensor: multiply, aten.mul.Scalar: multiply, aten.multiply.Tensor: multiply,
    aten.div.Tensor: div, aten.div.Scalar: div, aten.div.Tensor_mode: div, aten.div.Scalar_mode: div,
    aten.true_divide.Tensor: div,
    aten.floor_divide.default: floor_divide, aten.floor_divide.Scalar: floor_divide,
    aten.fmod.Scalar: fmod, aten.fmod.Tensor: fmod, aten.remainder.Scalar: remainder,
    aten.remainder.Tensor: remainder,
    aten.pow.Tensor_Scalar: power, aten.pow.Tensor_Tensor: power, aten.pow.Scalar: power,
    aten.maximum.default: binary("Max"), aten.minimum.default: binary("Min"),
    aten.max.other: binary("Max"), aten.min.other: binary("Min"), aten.atan2.default: atan2,
    aten.hypot.default: hypot, aten.copysign.Tensor: copysign,
    aten.frac.default: lambda e, x: e.op("Sub", x, truncated(e, x)),
    aten.addcmul.default: fused_product("Mul"), aten.addcdiv.default: fused_product("Div"),
    aten.lerp.Scalar: lerp, aten.lerp.Tensor: lerp,
    aten.eq.Tensor: binary("Equal"), aten.eq.Scalar: binary("Equal"), aten.ne.Tensor: not_equal,
    aten.ne.Scalar: not_equal,
    aten.lt.Tensor: binary("Less"), aten.lt.Scalar: binary("Less"), aten.gt.Tensor: binary("Greater"),
    aten.gt.Scalar: binary("Greater"), aten.le.Tensor: binary("LessOrEqual"), aten.le.Scalar: binary("LessOrEqual"),
    aten.ge.Tensor: binary("GreaterOrEqual"), aten.ge.Scalar: binary("GreaterOrEqual"),
    aten.logical_and.default: logical("And"), aten.logical_or.default: logical("Or"),
    aten.logical_xor.default: logical("Xor"),
    aten.bitwise_and.Tensor: bitwise("And"), aten.bitwise_or.Tensor: bitwise("Or"),
    aten.bitwise_xor.Tensor: bitwise("Xor"),
    aten.bitwise_and.Scalar: bitwise("And"), aten.bitwise_or.Scalar: bitwise("Or"),
    aten.bitwise_xor.Scalar: bitwise("Xor"),
    aten.__and__.Tensor: bitwise("And"), aten.__or__.Tensor: bitwise("Or"), aten.__xor__.Tensor: bitwise("Xor"),
    aten.__and__.Scalar: bitwise("And"), aten.__or__.Scalar: bitwise("Or"), aten.__xor__.Scalar: bitwise("Xor"),
    aten.__lshift__.Scalar: shift(left=True), aten.__rshift__.Scalar: shift(left=False),
    aten.bitwise_left_shift.Tensor: shift(left=True), aten.bitwise_right_shift.Tensor: shift(left=False),
    aten.bitwise_left_shift.Tensor_Scalar: shift(left=True),
    aten.bitwise_right_shift.Tensor_Scalar: shift(left=False),
    aten.where.self: where, aten.where.ScalarOther: where, aten.where.ScalarSelf: where, aten.where.Scalar: where,
    aten.masked_fill.Scalar: masked_fill, aten.masked_fill.Tensor: masked_fill,
    operator.add: symbolic("Add"), operator.sub: symbolic("Sub"), operator.mul: symbolic("Mul"),
    operator.floordiv: symbolic("Div"), operator.mod: symbolic("Mod"),
}  # fmt: skip
