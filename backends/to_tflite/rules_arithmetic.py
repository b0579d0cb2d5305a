"""Arithmetic, comparisons and logic of several operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from planish.backends.to_tflite.activations import code
from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.values import Quantization, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten
FUSING = frozenset({"ADD", "SUB", "MUL", "DIV"})


def operands(e: Emitter, *given: Any, dtype: torch.dtype | None = None) -> list[Value]:
    """Tensors and numbers in one dtype, rank and order."""
    dtype = dtype or e.result_dtype()
    return e.aligned(*(_as(e, x, dtype) for x in given))


def _as(e: Emitter, x: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, Value):
        return x if x.quantization is not None else e.cast(x, dtype)
    return x.to(dtype) if isinstance(x, Tensor) else torch.tensor(x, dtype=dtype)


def common_dtype(e: Emitter, first: int = 0) -> torch.dtype:
    """What torch compares two arguments in."""
    sides: list[Any] = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in e.node.args[first : first + 2]]
    return torch.result_type(*sides)


def arithmetic(kind: str) -> Rule:
    def rule(e: Emitter, a: Any, b: Any, **_: Any) -> Value:
        fused = {"fusedActivationFunction": code(e.activation)} if kind in FUSING else {}
        if e.result is not None:
            a, b = (integer_number(e, side) if isinstance(side, (int, float)) else side for side in (a, b))
        return e.compute(kind, *operands(e, a, b), **fused)

    return rule


def integer_number(e: Emitter, value: float) -> Value:
    """A constant beside integers: an integer with the scale that makes it ``value`` to the last digit."""
    step = Quantization((abs(value) / 127 or 1.0,), (0,))
    integer = torch.tensor(127 * (value > 0) - 127 * (value < 0), dtype=torch.int8)
    return e.made(("number", value), (), torch.int8, lambda: integer, quantization=step)


def add(e: Emitter, a: Any, b: Any, alpha: float = 1) -> Value:
    if e.result_dtype() is torch.bool:
        return e.op("LOGICAL_OR", *operands(e, a, b))
    return arithmetic("ADD")(e, a, scaled(e, b, alpha))  # type: ignore[no-any-return]


def sub(e: Emitter, a: Any, b: Any, alpha: float = 1) -> Value:
    return arithmetic("SUB")(e, a, scaled(e, b, alpha))  # type: ignore[no-any-return]


def rsub(e: Emitter, a: Any, b: Any, alpha: float = 1) -> Value:
    return e.op("SUB", *operands(e, b, scaled(e, a, alpha)))


def scaled(e: Emitter, x: Any, factor: float) -> Any:
    if factor == 1:
        return x
    return e.op("MUL", *operands(e, x, factor)) if isinstance(x, Value) else x * factor


def multiply(e: Emitter, a: Any, b: Any) -> Value:
    if e.result_dtype() is torch.bool:
        return e.op("LOGICAL_AND", *operands(e, a, b))
    return arithmetic("MUL")(e, a, b)  # type: ignore[no-any-return]


def div(e: Emitter, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor":
        return e.op("FLOOR_DIV", *operands(e, a, b))
    quotient = e.op("DIV", *operands(e, a, b))
    return truncated(e, quotient) if rounding_mode == "trunc" else quotient


def truncated(e: Emitter, x: Value) -> Value:
    """Towards zero, by way of whole numbers; integers are that already."""
    if not x.dtype.is_floating_point:
        return x
    return e.op("MUL", e.op("SIGN", x), e.op("FLOOR", e.op("ABS", x)))


def power(e: Emitter, base: Any, exponent: Any) -> Value:
    if exponent == 2:
        return e.op("SQUARE", *operands(e, base))
    if exponent == 0.5:
        return e.op("SQRT", *operands(e, base))
    if exponent == -0.5:
        return e.op("RSQRT", *operands(e, base))
    if exponent == 3:
        (x,) = operands(e, base)
        return e.op("MUL", e.op("SQUARE", x), x)
    return e.op("POW", *operands(e, base, exponent))


def fmod(e: Emitter, a: Any, b: Any) -> Value:
    a, b = operands(e, a, b)
    return e.op("SUB", a, e.op("MUL", truncated(e, e.op("DIV", a, b)), b))


def comparison(kind: str) -> Rule:
    def rule(e: Emitter, a: Any, b: Any) -> Value:
        a, b = operands(e, a, b, dtype=common_dtype(e))
        if a.dtype is torch.bool and kind not in ("EQUAL", "NOT_EQUAL"):
            a, b = (e.cast(side, torch.int32) for side in (a, b))
        return e.op(kind, a, b, dtype=torch.bool)

    return rule


def logical(kind: str) -> Rule:
    def rule(e: Emitter, a: Any, b: Any) -> Value:
        a, b = e.aligned(*(truth(e, side) for side in (a, b)))
        return e.op(kind, a, b, dtype=torch.bool)

    return rule


def truth(e: Emitter, x: Any) -> Any:
    """``x`` as BOOL: what is not zero."""
    if not isinstance(x, Value):
        return torch.as_tensor(x).bool()
    return x if x.dtype is torch.bool else e.op("NOT_EQUAL", x, e.numbers(0, x.dtype), dtype=torch.bool)


def bitwise(kind: str) -> Rule:
    """Of truth values; TFLite has none of the others but XOR."""

    def rule(e: Emitter, a: Any, b: Any) -> Value:
        if e.result_dtype() is torch.bool:
            return logical(kind)(e, a, b)  # type: ignore[no-any-return]
        if kind != "NOT_EQUAL":
            raise e.fail("bits of whole numbers, which TFLite cannot combine: use comparisons")
        return e.op("BITWISE_XOR", *operands(e, a, b))

    return rule


def where(e: Emitter, condition: Any, a: Any, b: Any) -> Value:
    dtype = e.result_dtype()
    return select(e, truth(e, condition), _as(e, a, dtype), _as(e, b, dtype))


def select(e: Emitter, condition: Any, a: Any, b: Any) -> Value:
    chosen, x, y = e.aligned(condition, a, b)
    return e.op("SELECT_V2", chosen, x, y, dtype=x.dtype)


def masked_fill(e: Emitter, x: Any, mask: Any, value: Any) -> Value:
    dtype = e.result_dtype()
    return select(e, truth(e, mask), _as(e, value, dtype), _as(e, x, dtype))


def number(e: Emitter, kind: str, x: Value, constant: float) -> Value:
    """``kind`` of ``x`` and a number."""
    return e.op(kind, x, e.numbers(constant, x.dtype))


def copysign(e: Emitter, a: Any, b: Any) -> Value:
    a, b = operands(e, a, b)
    negative = e.op("LESS", b, e.numbers(0.0, b.dtype), dtype=torch.bool)
    size = e.op("ABS", a)
    return e.op("SELECT_V2", negative, e.op("NEG", size), size, dtype=a.dtype)


RULES: dict[Operator, Rule] = {
    aten.add.Tensor: add, aten.add.Scalar: add, aten.sub.Tensor: sub, aten.sub.Scalar: sub,
    aten.rsub.Scalar: rsub, aten.rsub.Tensor: rsub, aten.mul.Tensor: multiply, aten.mul.Scalar: multiply,
    aten.multiply.Tensor: multiply, aten.div.Tensor: div, aten.div.Scalar: div, aten.div.Tensor_mode: div,
    aten.div.Scalar_mode: div, aten.true_divide.Tensor: div,
    aten.floor_divide.default: arithmetic("FLOOR_DIV"), aten.floor_divide.Scalar: arithmetic("FLOOR_DIV"),
    aten.remainder.Scalar: arithmetic("FLOOR_MOD"), aten.remainder.Tensor: arithmetic("FLOOR_MOD"),
    aten.fmod.Scalar: fmod, aten.fmod.Tensor: fmod,
    aten.pow.Tensor_Scalar: power, aten.pow.Tensor_Tensor: power, aten.pow.Scalar: power,
    aten.maximum.default: arithmetic("MAXIMUM"), aten.minimum.default: arithmetic("MINIMUM"),
    aten.max.other: arithmetic("MAXIMUM"), aten.min.other: arithmetic("MINIMUM"),
    aten.atan2.default: arithmetic("ATAN2"), aten.copysign.Tensor: copysign,
    aten.eq.Tensor: comparison("EQUAL"), aten.eq.Scalar: comparison("EQUAL"), aten.ne.Tensor: comparison("NOT_EQUAL"),
    aten.ne.Scalar: comparison("NOT_EQUAL"), aten.lt.Tensor: comparison("LESS"), aten.lt.Scalar: comparison("LESS"),
    aten.gt.Tensor: comparison("GREATER"), aten.gt.Scalar: comparison("GREATER"),
    aten.le.Tensor: comparison("LESS_EQUAL"), aten.le.Scalar: comparison("LESS_EQUAL"),
    aten.ge.Tensor: comparison("GREATER_EQUAL"), aten.ge.Scalar: comparison("GREATER_EQUAL"),
    aten.logical_and.default: logical("LOGICAL_AND"), aten.logical_or.default: logical("LOGICAL_OR"),
    aten.logical_xor.default: logical("NOT_EQUAL"), aten.logical_not.default: lambda e, x: e.op(
        "LOGICAL_NOT", truth(e, x)
    ),
    aten.bitwise_and.Tensor: bitwise("LOGICAL_AND"), aten.bitwise_or.Tensor: bitwise("LOGICAL_OR"),
    aten.bitwise_xor.Tensor: bitwise("NOT_EQUAL"), aten.__and__.Tensor: bitwise("LOGICAL_AND"),
    aten.__or__.Tensor: bitwise("LOGICAL_OR"), aten.__xor__.Tensor: bitwise("NOT_EQUAL"),
    aten.where.self: where, aten.where.ScalarOther: where, aten.where.ScalarSelf: where, aten.where.Scalar: where,
    aten.masked_fill.Scalar: masked_fill, aten.masked_fill.Tensor: masked_fill,
}  # fmt: skip
