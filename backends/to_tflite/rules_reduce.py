"""Reductions along dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_arithmetic import number, operands, truth
from planish.backends.to_tflite.rules_shape import dropped
from planish.backends.to_tflite.values import Order, Shape, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten
Dims = Sequence[int] | int | None


def listed(x: Value, dims: Dims) -> list[int]:
    """The dimensions that are meant, all of them where none is named."""
    rank = len(x.order)
    given = [dims] if isinstance(dims, int) else [*dims] if dims is not None else []
    return sorted(dim % rank for dim in given) if given and rank else [*range(rank)]


def reduced(x: Value, dims: Sequence[int], keepdim: bool) -> tuple[Shape, Order]:
    """Shape and order of what is left of ``x``."""
    if keepdim:
        return tuple(1 if dim in dims else size for dim, size in zip(x.order, x.shape, strict=True)), x.order
    left = sorted(dim for dim in x.order if dim not in dims)
    kept = [(dim, size) for dim, size in zip(x.order, x.shape, strict=True) if dim not in dims]
    return tuple(size for _, size in kept), tuple(left.index(dim) for dim, _ in kept)


def reduce(e: Emitter, kind: str, x: Value, dims: Dims, keepdim: bool, dtype: torch.dtype | None = None) -> Value:
    axes = listed(x, dims)
    if not axes:
        return x
    shape, order = reduced(x, axes, keepdim)
    places = e.numbers(sorted(x.place(dim) for dim in axes))
    return e.compute(kind, x, places, shape=shape, order=order, dtype=dtype or x.dtype, keepDims=keepdim)


def reduction(kind: str) -> Rule:
    def rule(e: Emitter, x: Value, dims: Dims = None, keepdim: bool = False, **_: Any) -> Value:
        return reduce(e, kind, x if x.quantization else e.cast(x, e.result_dtype()), dims, keepdim)  # type: ignore[arg-type]

    return rule


def whole(kind: str) -> Rule:
    """Over all dimensions."""
    return lambda e, x, **_: reduce(e, kind, e.cast(x, e.result_dtype()), None, False)


def of_truth(kind: str) -> Rule:
    def rule(e: Emitter, x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
        return reduce(e, kind, truth(e, x), dims, keepdim)

    return rule


def arg_reduction(kind: str) -> Rule:
    def rule(e: Emitter, x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            flat = e.reshape(x, (math.prod(x.sizes),))
            found = position(e, kind, flat, 0)  # type: ignore[arg-type]
            return e.reshape(found, [1] * len(x.order)) if keepdim else found
        return _kept(e, position(e, kind, x, dim), x, dim, keepdim)

    return rule


def position(e: Emitter, kind: str, x: Value, dim: int) -> Value:
    shape, order = reduced(x, [dim % len(x.order)], keepdim=False)
    return e.op(kind, x, e.numbers(x.place(dim)), shape=shape, order=order, dtype=torch.int32, outputType=2)


def _kept(e: Emitter, found: Value, x: Value, dim: int, keepdim: bool) -> Any:
    if not keepdim:
        return found
    dim %= len(x.order)
    return e.reshape(found, [1 if own == dim else size for own, size in enumerate(x.sizes)])


def extreme_with_index(values: str, indices: str) -> Rule:
    def rule(e: Emitter, x: Value, dim: int, keepdim: bool = False) -> list[Any]:
        best = reduce(e, values, x, dim, keepdim)
        return [best, _kept(e, position(e, indices, x, dim), x, dim, keepdim)]

    return rule


def moments(e: Emitter, x: Value, dims: Dims, correction: float, keepdim: bool) -> tuple[Value, Value]:
    """Variance and mean."""
    axes = listed(x, dims)
    mean = reduce(e, "MEAN", x, axes, keepdim=True)
    squares = e.op("SQUARED_DIFFERENCE", x, mean)
    count = math.prod(x.sizes[dim] for dim in axes)
    variance = reduce(e, "MEAN", squares, axes, keepdim)
    if correction:
        variance = number(e, "MUL", variance, count / max(count - correction, 0) if count > correction else math.nan)
    return variance, mean if keepdim else dropped(e, mean, axes)


def variance(root: bool) -> Rule:
    def rule(
        e: Emitter, x: Value, dims: Any = None, unbiased: bool = True, keepdim: bool = False, correction: Any = None
    ) -> Value:
        found, _ = moments(e, x, dims, int(unbiased) if correction is None else correction, keepdim)
        return e.op("SQRT", found) if root else found

    return rule


def variance_and_mean(
    e: Emitter, x: Value, dims: Dims = None, *, correction: Any = None, keepdim: bool = False
) -> tuple[Value, Value]:
    return moments(e, x, dims, 1 if correction is None else correction, keepdim)


def cumsum(e: Emitter, x: Value, dim: int, dtype: Any = None) -> Value:
    value = e.cast(x, e.result_dtype())
    assert isinstance(value, Value)
    return e.op("CUMSUM", value, e.numbers(value.place(dim)), shape=value.shape) if value.order else value


def logsumexp(e: Emitter, x: Value, dims: Dims, keepdim: bool = False) -> Value:
    """The largest value is taken out first: exp does not overflow."""
    largest = reduce(e, "REDUCE_MAX", x, dims, keepdim=True)
    total = reduce(e, "SUM", e.op("EXP", e.op("SUB", x, largest)), dims, keepdim=True)
    result = e.op("ADD", e.op("LOG", total), largest)
    return result if keepdim else dropped(e, result, listed(x, dims))


def vector_norm(e: Emitter, x: Value, order: Any = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Value:
    order = 2 if order is None else order
    if order == 2:
        return e.op("SQRT", reduce(e, "SUM", e.op("SQUARE", x), dims, keepdim))
    size = e.op("ABS", x)
    if order in (math.inf, -math.inf):
        return reduce(e, "REDUCE_MAX" if order > 0 else "REDUCE_MIN", size, dims, keepdim)
    if order == 1:
        return reduce(e, "SUM", size, dims, keepdim)
    if order == 0:
        return reduce(e, "SUM", e.op("SIGN", size), dims, keepdim)
    total = reduce(e, "SUM", number(e, "POW", size, float(order)), dims, keepdim)
    return number(e, "POW", total, 1 / order)


def distance(e: Emitter, a: Any, b: Any, order: float = 2) -> Value:
    return vector_norm(e, e.op("SUB", *operands(e, a, b)), order)


RULES: dict[Operator, Rule] = {
    aten.mean.dim: reduction("MEAN"), aten.mean.default: whole("MEAN"),
    aten.sum.dim_IntList: reduction("SUM"), aten.sum.default: whole("SUM"),
    aten.prod.dim_int: reduction("REDUCE_PROD"), aten.prod.default: whole("REDUCE_PROD"),
    aten.amax.default: reduction("REDUCE_MAX"), aten.amin.default: reduction("REDUCE_MIN"),
    aten.max.default: whole("REDUCE_MAX"), aten.min.default: whole("REDUCE_MIN"),
    aten.max.dim: extreme_with_index("REDUCE_MAX", "ARG_MAX"),
    aten.min.dim: extreme_with_index("REDUCE_MIN", "ARG_MIN"),
    aten.any.default: of_truth("REDUCE_ANY"), aten.any.dim: of_truth("REDUCE_ANY"),
    aten.any.dims: of_truth("REDUCE_ANY"), aten.all.default: of_truth("REDUCE_ALL"),
    aten.all.dim: of_truth("REDUCE_ALL"), aten.all.dims: of_truth("REDUCE_ALL"),
    aten.argmax.default: arg_reduction("ARG_MAX"), aten.argmin.default: arg_reduction("ARG_MIN"),
    aten.var.correction: variance(root=False), aten.std.correction: variance(root=True),
    aten.var.dim: variance(root=False), aten.std.dim: variance(root=True), aten.var_mean.correction: variance_and_mean,
    aten.cumsum.default: cumsum, aten.logsumexp.default: logsumexp, aten.linalg_vector_norm.default: vector_norm,
    aten.norm.ScalarOpt_dim: vector_norm, aten.norm.Scalar: vector_norm,
    aten.dist.default: distance,
}  # fmt: skip
