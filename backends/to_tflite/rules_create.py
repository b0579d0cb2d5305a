"""Other dtypes, and tensors that are made of the sizes of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_arithmetic import select, truth
from planish.backends.to_tflite.values import Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def to_dtype(e: Emitter, x: Value, *_: Any, **__: Any) -> Value:
    dtype = e.result_dtype()
    if dtype is torch.bool:
        return truth(e, x)  # type: ignore[no-any-return]
    return e.cast(x, dtype)  # type: ignore[return-value]


def filled_like(value: float) -> Rule:
    def rule(e: Emitter, x: Value, *_: Any, **__: Any) -> Tensor:
        return torch.full(x.sizes, value, dtype=e.result_dtype())

    return rule


def triangle(upper: bool) -> Rule:
    def rule(e: Emitter, x: Value, diagonal: int = 0) -> Value:
        ones = torch.ones(x.sizes[-2:], dtype=torch.bool)
        kept = ones.triu(diagonal) if upper else ones.tril(diagonal)
        return select(e, kept, x, torch.zeros((), dtype=e.result_dtype()))

    return rule


def one_hot(e: Emitter, x: Value, classes: int = -1) -> Any:
    if classes < 0:
        raise e.fail("one_hot with as many classes as the data has")
    column = e.reshape(x, (*x.sizes, 1))
    hit = e.op("EQUAL", *e.aligned(column, torch.arange(classes, dtype=torch.int32)), dtype=torch.bool)
    return e.cast(hit, torch.int64)


RULES: dict[Operator, Rule] = {
    aten.tril.default: triangle(upper=False), aten.triu.default: triangle(upper=True), aten.one_hot.default: one_hot,
    **dict.fromkeys(
        (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default,
         aten._to_copy.default),
        to_dtype,
    ),
    aten.zeros_like.default: filled_like(0), aten.ones_like.default: filled_like(1),
    aten.empty_like.default: filled_like(0),
    aten.full_like.default: lambda e, x, value, **_: torch.full(x.sizes, value, dtype=e.result_dtype()),
    aten.new_zeros.default: lambda e, x, sizes, **_: torch.zeros(sizes, dtype=e.result_dtype()),
    aten.new_ones.default: lambda e, x, sizes, **_: torch.ones(sizes, dtype=e.result_dtype()),
    aten.new_full.default: lambda e, x, sizes, value, **_: torch.full(sizes, value, dtype=e.result_dtype()),
    aten.new_empty.default: lambda e, x, sizes, **_: torch.zeros(sizes, dtype=e.result_dtype()),
}  # fmt: skip
