"""Operators that make tensors, or give one another dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Size, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def to_dtype(e: Emitter, x: Value, *_: Any, **__: Any) -> Value:
    """All overloads of ``to`` and ``type_as``: what counts is the dtype that came out."""
    same = e.fake(0).dtype is e.result_dtype()
    return x if same else e.cast(x, e.result_dtype())


def full(e: Emitter, sizes: Sequence[Size], value: Any, **_: Any) -> Value:
    return _filled(e, e.sizes(sizes), value)


def full_like(e: Emitter, x: Value, value: Any, **_: Any) -> Value:
    shape = e.fake_result().shape
    known = all(isinstance(s, int) for s in shape)
    return _filled(e, e.constant([*shape], torch.int64) if known else e.op("Shape", x), value)


def _filled(e: Emitter, shape: Value, value: Any) -> Value:
    if isinstance(value, ir.Value):
        return e.op("Expand", e.cast(value, e.result_dtype()), shape)
    return e.op("ConstantOfShape", shape, value=ir.tensor(torch.tensor([value], dtype=e.result_dtype()).numpy()))


def arange(e: Emitter, *bounds: Any, **_: Any) -> Value:
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1) if len(bounds) == 2 else bounds
    dtype = e.result_dtype()
    if all(isinstance(bound, (int, float)) for bound in (start, end, step)):
        return e.constant(torch.arange(start, end, step, dtype=dtype).tolist(), dtype)
    parts = [e.constant(b, dtype) if isinstance(b, (int, float)) else e.cast(b, dtype) for b in (start, end, step)]
    return e.op("Range", *parts)


def triangle(upper: bool) -> Rule:
    def rule(e: Emitter, x: Value, diagonal: int = 0) -> Value:
        return e.op("Trilu", x, e.constant(diagonal), upper=int(upper))

    return rule


def copied(e: Emitter, x: Value, source: Value, *_: Any) -> Value:
    """``source`` in the shape and dtype of ``x``."""
    value = source if e.fake(1).dtype is e.result_dtype() else e.cast(source, e.result_dtype())
    same = [str(size) for size in e.fake(1).shape] == [str(size) for size in e.fake(0).shape]
    return value if same else e.op("Expand", value, e.op("Shape", x))


def one_hot(e: Emitter, x: Value, classes: int = -1) -> Value:
    if classes < 0:
        raise e.fail("one_hot with as many classes as the data has")
    return e.op("OneHot", x, e.constant(classes), e.constant([0, 1]), axis=-1)


def scalar(e: Emitter, value: Any, **_: Any) -> Value:
    return e.cast(value, e.result_dtype()) if isinstance(value, ir.Value) else e.constant(value, e.result_dtype())


RULES: dict[Operator, Rule] = {
    aten.to.dtype: to_dtype, aten.to.device: to_dtype, aten.to.dtype_layout: to_dtype, aten.to.other: to_dtype,
    aten.type_as.default: to_dtype, aten._to_copy.default: to_dtype,
    aten.full.default: full, aten.full_like.default: full_like, aten.fill.Scalar: full_like,
    aten.fill.Tensor: full_like,
    aten.copy.default: copied, aten.scalar_tensor.default: scalar, aten.one_hot.default: one_hot,
    aten.zeros.default: lambda e, sizes, **_: full(e, sizes, 0), aten.ones.default: lambda e, sizes,
    **_: full(e, sizes, 1),
    aten.empty.memory_format: lambda e, sizes, **_: full(e, sizes, 0), aten.new_empty.default: lambda e, x, sizes,
    **_: full(e, sizes, 0),
    aten.empty_like.default: lambda e, x, **_: full_like(e, x, 0),
    aten.zeros_like.default: lambda e, x, **_: full_like(e, x, 0), aten.ones_like.default: lambda e, x,
    **_: full_like(e, x, 1),
    aten.new_zeros.default: lambda e, x, sizes, **_: full(e, sizes, 0),
    aten.new_ones.default: lambda e, x, sizes, **_: full(e, sizes, 1),
    aten.new_full.default: lambda e, x, sizes, value, **_: full(e, sizes, value),
    aten.arange.default: arange, aten.arange.start: arange, aten.arange.start_step: arange,
    aten.tril.default: triangle(upper=False), aten.triu.default: triangle(upper=True),
}  # fmt: skip
