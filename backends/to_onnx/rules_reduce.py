"""Reductions along dimensions, orders and running sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten
Dims = Sequence[int] | int | None


def reduction(kind: str) -> Rule:
    def rule(e: Emitter, x: Value, dims: Dims = None, keepdim: bool = False, dtype: Any = None) -> Value:
        value = x if e.fake(0).dtype is e.result_dtype() else e.cast(x, e.result_dtype())
        if e.fake(0).ndim == 0:
            return value
        return e.op(kind, value, _axes(e, dims), keepdims=int(keepdim))

    return rule


def _axes(e: Emitter, dims: Dims) -> Value | None:
    """None is all of them."""
    listed = [dims] if isinstance(dims, int) else [*(dims or ())]
    return e.constant(listed) if listed else None


def truth(kind: str) -> Rule:
    """Any and all: the largest or smallest of 0 and 1."""

    def rule(e: Emitter, x: Value, dims: Dims = None, keepdim: bool = False) -> Value:
        bits = e.cast(e.cast(x, torch.bool), torch.int32)
        return e.cast(e.op(kind, bits, _axes(e, dims), keepdims=int(keepdim)), torch.bool)

    return rule


def mean(e: Emitter, x: Value, dims: Dims = None, keepdim: bool = False, dtype: Any = None) -> Value:
    """The mean over all spatial dimensions is GlobalAveragePool, which the runtimes have in INT8 too."""
    rank = e.fake(0).ndim
    x = x if e.fake(0).dtype is e.result_dtype() else e.cast(x, e.result_dtype())
    axes = sorted(dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank)))
    if rank >= 3 and axes == [*range(2, rank)]:
        pooled = e.op("GlobalAveragePool", x)
        return pooled if keepdim else e.op("Flatten", pooled, axis=1)
    return e.op("ReduceMean", x, e.constant(axes), keepdims=int(keepdim)) if axes else x


def arg_reduction(kind: str) -> Rule:
    def rule(e: Emitter, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            x, dim = e.op("Reshape", x, e.constant([-1])), 0
        return e.op(kind, x, axis=dim, keepdims=int(keepdim))

    return rule


def extreme_with_index(values: str, indices: str) -> Rule:
    def rule(e: Emitter, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
        best = e.op(values, x, e.constant([dim]), keepdims=int(keepdim))
        return [best, e.op(indices, x, axis=dim, keepdims=int(keepdim))]

    return rule


def variance(root: bool) -> Rule:
    def rule(
        e: Emitter, x: Value, dims: Any = None, unbiased: bool = True, keepdim: bool = False, correction: Any = None
    ) -> Value:
        divisor = correction if correction is not None else int(unbiased)
        return _variance(e, x, dims, divisor, keepdim, root)[0]

    return rule


def variance_and_mean(
    e: Emitter, x: Value, dims: Dims = None, *, correction: Any = None, keepdim: bool = False
) -> tuple[Value, Value]:
    return _variance(e, x, dims, 1 if correction is None else correction, keepdim, root=False)


def _variance(e: Emitter, x: Value, dims: Dims, correction: float, keepdim: bool, root: bool) -> tuple[Value, Value]:
    fake = e.fake(0)
    listed = [*([dims] if isinstance(dims, int) else dims or range(fake.ndim))]
    axes = e.constant(listed)
    average = e.op("ReduceMean", x, axes, keepdims=1)
    squares = e.op("ReduceSumSquare", e.op("Sub", x, average), axes, keepdims=int(keepdim))
    value = e.op("Div", squares, _divisor(e, x, listed, correction))
    mean_of = average if keepdim else e.op("Squeeze", average, axes)
    return (e.op("Sqrt", value) if root else value), mean_of


def _divisor(e: Emitter, x: Value, dims: Sequence[int], correction: float) -> Value:
    fake = e.fake(0)
    count = math.prod(fake.shape[axis] for axis in dims)
    if isinstance(count, int):
        return e.constant(float(max(count - correction, 0)), fake.dtype)
    sizes = e.op("Gather", e.op("Shape", x), e.constant([dim % fake.ndim for dim in dims]), axis=0)
    total = e.cast(e.op("ReduceProd", sizes, keepdims=0), fake.dtype)
    return e.op("Max", e.op("Sub", total, e.constant(float(correction), fake.dtype)), e.constant(0.0, fake.dtype))


def cumsum(e: Emitter, x: Value, dim: int, dtype: Any = None) -> Value:
    value = e.cast(x, e.result_dtype())
    return e.op("CumSum", value, e.constant(dim)) if e.fake(0).ndim else value


def histc(e: Emitter, x: Value, bins: int = 100, low: float = 0, high: float = 0) -> Value:
    """A column for each bin, a row for each value: sums over the rows. Values outside of the limits count nowhere."""
    dtype = e.fake(0).dtype
    if low >= high:
        raise e.fail("histc between limits that the values set")
    column = e.op("Reshape", x, e.constant([-1, 1]))
    scaled = e.op("Mul", e.op("Sub", column, e.constant(low, dtype)), e.constant(bins / (high - low), dtype))
    place = e.op("Min", e.op("Floor", scaled), e.constant(bins - 1, dtype))
    limits = (("GreaterOrEqual", low), ("LessOrEqual", high))
    within = e.op("And", *(e.op(kind, column, e.constant(limit, dtype)) for kind, limit in limits))
    hits = e.op("And", e.op("Equal", place, e.constant([*range(bins)], dtype)), within)
    return e.op("ReduceSum", e.cast(hits, dtype), e.constant([0]), keepdims=0)


def vector_norm(e: Emitter, x: Value, order: float = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Value:
    axes, kept = _axes(e, dims), int(keepdim)
    named = {1.0: "ReduceL1", 2.0: "ReduceL2"}.get(float(order))
    if named is not None:
        return e.op(named, x, axes, keepdims=kept)
    size = e.op("Abs", x)
    if order in (math.inf, -math.inf):
        return e.op("ReduceMax" if order > 0 else "ReduceMin", size, axes, keepdims=kept)
    dtype = e.result_dtype()
    if order == 0:
        return e.op("ReduceSum", e.op("Sign", size), axes, keepdims=kept)
    total = e.op("ReduceSum", e.op("Pow", size, e.constant(order, dtype)), axes, keepdims=kept)
    return e.op("Pow", total, e.constant(1 / order, dtype))


def norm(e: Emitter, x: Value, order: Any = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return vector_norm(e, x, 2 if order is None else order, dims, keepdim)


def distance(e: Emitter, a: Value, b: Value, order: float = 2) -> Value:
    return vector_norm(e, e.op("Sub", *e.promoted(a, b)), order)


RULES: dict[Operator, Rule] = {
    aten.mean.dim: mean, aten.mean.default: lambda e, x, **_: mean(e, x),
    aten.sum.dim_IntList: reduction("ReduceSum"), aten.sum.default: reduction("ReduceSum"),
    aten.prod.dim_int: reduction("ReduceProd"), aten.prod.default: reduction("ReduceProd"),
    aten.amax.default: reduction("ReduceMax"), aten.amin.default: reduction("ReduceMin"),
    aten.logsumexp.default: reduction("ReduceLogSumExp"),
    aten.max.default: reduction("ReduceMax"), aten.min.default: reduction("ReduceMin"),
    aten.max.dim: extreme_with_index("ReduceMax", "ArgMax"), aten.min.dim: extreme_with_index("ReduceMin", "ArgMin"),
    aten.any.default: truth("ReduceMax"), aten.any.dim: truth("ReduceMax"), aten.any.dims: truth("ReduceMax"),
    aten.all.default: truth("ReduceMin"), aten.all.dim: truth("ReduceMin"), aten.all.dims: truth("ReduceMin"),
    aten.argmax.default: arg_reduction("ArgMax"), aten.argmin.default: arg_reduction("ArgMin"),
    aten.var.correction: variance(root=False), aten.std.correction: variance(root=True),
    aten.var.dim: variance(root=False), aten.std.dim: variance(root=True),
    aten.var_mean.correction: variance_and_mean,
    aten.cumsum.default: cumsum, aten.linalg_vector_norm.default: vector_norm,
    aten.norm.ScalarOpt_dim: norm, aten.norm.Scalar: norm, aten.dist.default: distance, aten.histc.default: histc,
}  # fmt: skip
