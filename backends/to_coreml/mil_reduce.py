"""Reductions, orders and running sums."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planish.backends.to_coreml.mil_values import Function, Unevaluated, number, numbers


def reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
        dims = [*range(x.ndim)] if axes is None else numbers(axes)
        keep = keep_dims is not None and bool(keep_dims)
        return function(x, dims, keep) if dims else x

    return reduce


def product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
        x = x.prod(dim, keep)
    return x


def argument(function: Function) -> Function:
    def reduce(
        x: Tensor, axis: Tensor | None = None, keep_dims: Tensor | None = None, output_dtype: str = "int32"
    ) -> Tensor:
        result: Tensor = function(x, -1 if axis is None else number(axis), keep_dims is not None and bool(keep_dims))
        return result

    return reduce


def cumsum(x: Tensor, axis: Tensor, exclusive: Tensor, reverse: Tensor) -> Tensor:
    dim = number(axis)
    values = x.flip(dim) if bool(reverse) else x
    sums = values.cumsum(dim, dtype=x.dtype)
    if bool(exclusive):
        sums = sums - values
    return sums.flip(dim) if bool(reverse) else sums


def topk(
    x: Tensor,
    k: Tensor,
    axis: Tensor,
    ascending: Tensor,
    sort: Tensor | None = None,
    return_indices: Tensor | None = None,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, ...]:
    if sort is not None and not bool(sort):
        raise Unevaluated("topk", "unsorted: the order is the runtime's")
    found = x.topk(number(k), number(axis), largest=not bool(ascending), sorted=True)
    return (found.values,) if return_indices is not None and not bool(return_indices) else (*found,)


def argsort(x: Tensor, axis: Tensor, ascending: Tensor) -> Tensor:
    return x.argsort(dim=number(axis), descending=not bool(ascending), stable=True)


OPERATIONS: dict[str, Function] = {
    "reduce_sum": reduction(lambda x, dims, keep: x.sum(dims, keep, dtype=x.dtype)),
    "reduce_mean": reduction(lambda x, dims, keep: x.float().mean(dims, keep)),
    "reduce_max": reduction(lambda x, dims, keep: x.amax(dims, keep)),
    "reduce_min": reduction(lambda x, dims, keep: x.amin(dims, keep)),
    "reduce_prod": reduction(product),
    "reduce_l1_norm": reduction(lambda x, dims, keep: x.abs().sum(dims, keep)),
    "reduce_l2_norm": reduction(lambda x, dims, keep: x.square().sum(dims, keep).sqrt()),
    "reduce_log_sum": reduction(lambda x, dims, keep: x.sum(dims, keep).log()),
    "reduce_log_sum_exp": reduction(lambda x, dims, keep: x.logsumexp(dims, keep)),
    "reduce_sum_square": reduction(lambda x, dims, keep: x.square().sum(dims, keep)),
    "reduce_argmax": argument(torch.argmax),
    "reduce_argmin": argument(torch.argmin),
    "cumsum": cumsum,
    "topk": topk,
    "argsort": argsort,
}
