"""Operators in terms of others that coremltools converts, where PyTorch takes them apart too finely or not at all.

Each function computes what its operator computes; NotImplemented leaves the operator as it is. Rules; those
without a link we found by converting with coremltools 9.0:

1. Normalization by groups is a layer norm of each group: coremltools wants to know the batch.
2. Adaptive pools are means and maxima of slices, put together again: as 1.
3. Circular padding is a concatenation, negative padding a slice; PyTorch writes in place.
4. Writes to places along a dimension, and to a mask, are choices: coremltools takes single places only.
5. Remainders, distances, products of three, and what coremltools does not know, by their definitions.
6. Triangles are choices: coremltools subtracts a band, and what is infinite becomes no number.
   https://github.com/apple/coremltools/pull/2771
7. A tensor filled like another is filled, then cast: coremltools drops its dtype. Reported nowhere that we found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.backends.to_coreml.whole_numbers import WHOLE_NUMBERS

aten = torch.ops.aten


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    inner = math.prod(x.shape[1:]) // groups
    normed = F.layer_norm(x.reshape(x.shape[0], groups, inner), [inner], eps=eps).reshape(x.shape)
    per_channel = [1, -1, *[1] * (x.ndim - 2)]
    normed = normed if weight is None else normed * weight.reshape(per_channel)
    return normed if bias is None else normed + bias.reshape(per_channel)


def _ranges(size: int, target: int) -> list[tuple[int, int]]:
    """Where each window of adaptive pooling starts and ends."""
    return [(at * size // target, -(-(at + 1) * size // target)) for at in range(target)]


def _windows(x: Tensor, dim: int, target: int) -> list[Tensor]:
    return [x.narrow(dim, start, end - start) for start, end in _ranges(int(x.shape[dim]), target)]


def adaptive_avg_pool(x: Tensor, sizes: Sequence[int]) -> Tensor:
    for dim, target in zip(range(x.ndim - len(sizes), x.ndim), sizes, strict=True):
        x = torch.cat([window.mean(dim, keepdim=True) for window in _windows(x, dim, target)], dim)
    return x


def adaptive_max_pool(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    spatial = x.shape[x.ndim - len(sizes) :]
    places = torch.arange(math.prod(spatial)).reshape([1] * (x.ndim - len(sizes)) + [*spatial]).expand(x.shape)
    for dim, target in zip(range(x.ndim - len(sizes), x.ndim), sizes, strict=True):
        windows, origins = _windows(x, dim, target), _windows(places, dim, target)
        best = [window.argmax(dim, keepdim=True) for window in windows]
        places = torch.cat([own.gather(dim, at) for own, at in zip(origins, best, strict=True)], dim)
        x = torch.cat([window.amax(dim, keepdim=True) for window in windows], dim)
    return x, places


def pad(x: Tensor, amounts: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode != "circular":
        return _cropped(x, amounts, mode, value) if any(amount < 0 for amount in amounts) else NotImplemented
    for at in range(0, len(amounts), 2):
        dim, (before, after) = x.ndim - 1 - at // 2, amounts[at : at + 2]
        size = x.shape[dim]
        parts = [x.narrow(dim, size - before, before)] if before else []
        x = torch.cat([*parts, x, *([x.narrow(dim, 0, after)] if after else [])], dim)
    return x


def _cropped(x: Tensor, amounts: Sequence[int], mode: str, value: float | None) -> Tensor:
    for at in range(0, len(amounts), 2):
        dim, before, after = x.ndim - 1 - at // 2, max(-amounts[at], 0), max(-amounts[at + 1], 0)
        x = x.narrow(dim, before, x.shape[dim] - before - after)
    return F.pad(x, [max(amount, 0) for amount in amounts], mode, value)


def constant_pad(x: Tensor, amounts: Sequence[int], value: float = 0) -> Any:
    return pad(x, amounts, "constant", value)


def index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        return NotImplemented
    dim, index = given[0]
    if index.dtype is torch.bool:
        if accumulate or values.numel() != 1 or dim or index.ndim != x.ndim:
            return NotImplemented
        return torch.where(index, values.reshape([1] * x.ndim).to(x.dtype), x)
    if index.ndim > 1 or x.ndim < 2:
        return NotImplemented
    shape = [index.numel() if at == dim else size for at, size in enumerate(x.shape)]
    if index.ndim == 0 and values.ndim == x.ndim - 1:
        values = values.unsqueeze(dim)
    values = values.expand(shape)
    hits = index.reshape(1, -1) == torch.arange(x.shape[dim]).reshape(-1, 1)  # [places along dim, values]
    if accumulate:
        return x + (hits.to(x.dtype) @ values.movedim(dim, -2)).movedim(-2, dim)
    put = values.index_select(dim, hits.to(torch.int32).argmax(1))
    written = hits.any(1).reshape([-1 if at == dim else 1 for at in range(x.ndim)])
    return torch.where(written, put, x)


def roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    if not dims:
        return roll(x.flatten(), shifts, (0,)).reshape(x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        size = int(x.shape[dim])
        cut = size - shift % size
        x = torch.cat([x.narrow(dim, cut, size - cut), x.narrow(dim, 0, cut)], dim) if cut < size else x
    return x


def fmod(x: Tensor, y: Any) -> Tensor:
    whole: Tensor = torch.div(x, y, rounding_mode="trunc") * y
    return x - whole


def erfc(x: Tensor) -> Tensor:
    return 1 - torch.erf(x)


def hypot(x: Tensor, y: Tensor) -> Tensor:
    return (x.square() + y.square()).sqrt()


def cdist(a: Tensor, b: Tensor, p: float = 2.0, mode: int | None = None) -> Tensor:
    difference = (a.unsqueeze(-2) - b.unsqueeze(-3)).abs()
    if p == 2:
        return difference.square().sum(-1).sqrt()
    if math.isinf(p):
        return difference.amax(-1)
    return difference.pow(p).sum(-1).pow(1 / p)


def trilinear(
    a: Tensor, b: Tensor, c: Tensor, new_a: list[int], new_b: list[int], new_c: list[int], summed: list[int],
    unroll: int = 1,
) -> Tensor:  # fmt: skip
    for new, place in ((new_a, 0), (new_b, 1), (new_c, 2)):
        for dim in sorted(new):
            a, b, c = (each.unsqueeze(dim) if at == place else each for at, each in enumerate((a, b, c)))
    return (a * b * c).sum(summed)


def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    values, places = x.sort(dim)
    found = values.narrow(dim, k - 1, 1), places.narrow(dim, k - 1, 1)
    return found if keepdim else (found[0].squeeze(dim), found[1].squeeze(dim))


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    moved = x.movedim((dim1, dim2), (-2, -1))
    rows, columns = int(moved.shape[-2]), int(moved.shape[-1])
    first = offset if offset >= 0 else -offset * columns
    count = min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns)
    return moved.flatten(-2)[..., first : first + (count - 1) * (columns + 1) + 1 : columns + 1]


def unfold(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    dim %= x.ndim
    starts = range(0, int(x.shape[dim]) - size + 1, step)
    return torch.stack([x.narrow(dim, start, size) for start in starts], dim).movedim(dim + 1, -1)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    cut: Tensor = x.unflatten(1, (groups, -1)).transpose(1, 2)
    return cut.flatten(1, 2)


def trunc(x: Tensor) -> Tensor:
    return torch.where(x < 0, x.ceil(), x.floor())


def frac(x: Tensor) -> Tensor:
    return x - trunc(x)


def im2col(
    x: Tensor, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """One strided slice for each place of the kernel: advanced indices would need six dimensions."""
    x = F.pad(x, [padding[1], padding[1], padding[0], padding[0]])
    sizes = [(int(x.shape[at - 2]) - dilation[at] * (kernel[at] - 1) - 1) // stride[at] + 1 for at in (0, 1)]
    slices = [
        x[
            ...,
            row * dilation[0] : row * dilation[0] + (sizes[0] - 1) * stride[0] + 1 : stride[0],
            column * dilation[1] : column * dilation[1] + (sizes[1] - 1) * stride[1] + 1 : stride[1],
        ]
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]
    return torch.stack(slices, 2).reshape(x.shape[0], -1, sizes[0] * sizes[1])


def var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    dims = [*range(x.ndim)] if dim is None else [*dim]
    return x.var(dims, correction=1 if correction is None else correction, keepdim=keepdim), x.mean(dims, keepdim)


def avg_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0, 0), ceil: bool = False,
    count_padding: bool = True, divisor: int | None = None,
) -> Any:  # fmt: skip
    if divisor is None or ceil:
        return NotImplemented
    return F.avg_pool2d(x, [*kernel], [*(stride or kernel)], [*padding]) * (math.prod(kernel) / divisor)


def median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return kthvalue(x, (int(x.shape[dim]) + 1) // 2, dim, keepdim)


def argsort(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    return x.sort(dim, descending)[1]


def isinf(x: Tensor) -> Tensor:
    return x.abs() == math.inf


def copysign(x: Tensor, y: Any) -> Tensor:
    return torch.where(torch.as_tensor(y) < 0, -x.abs(), x.abs())


def heaviside(x: Tensor, middle: Tensor) -> Tensor:
    return torch.where(x == 0, middle, (x > 0).to(x.dtype))


def xlogy(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x == 0, torch.zeros_like(x), x * y.log())


def asinh(x: Tensor) -> Tensor:
    return x.sign() * (x.abs() + (x.square() + 1).sqrt()).log()


def acosh(x: Tensor) -> Tensor:
    return (x + (x.square() - 1).sqrt()).log()


def triangle(keeps: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    def cut(x: Tensor, diagonal: int = 0) -> Tensor:
        ahead = torch.arange(x.shape[-1]) - torch.arange(x.shape[-2]).reshape(-1, 1)
        return torch.where(keeps(ahead, diagonal), x, torch.zeros_like(x))

    return cut


def full_like(x: Tensor, value: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    if dtype is None or dtype is x.dtype:
        return NotImplemented
    return torch.full(x.shape, value).to(dtype)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **WHOLE_NUMBERS,
    aten.group_norm.default: group_norm,
    aten.adaptive_avg_pool1d.default: adaptive_avg_pool, aten.adaptive_avg_pool2d.default: adaptive_avg_pool,
    aten.adaptive_avg_pool3d.default: adaptive_avg_pool,
    aten.adaptive_max_pool1d.default: adaptive_max_pool, aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.pad.default: pad, aten.index_put.default: index_put,
    aten.fmod.Tensor: fmod, aten.fmod.Scalar: fmod, aten.erfc.default: erfc,
    aten._cdist_forward.default: cdist, aten.cdist.default: cdist, aten._trilinear.default: trilinear,
    aten.kthvalue.default: kthvalue, aten.full_like.default: full_like, aten.constant_pad_nd.default: constant_pad,
    aten.copysign.Tensor: copysign, aten.heaviside.default: heaviside, aten.xlogy.Tensor: xlogy,
    aten.triu.default: triangle(torch.ge), aten.tril.default: triangle(torch.le),
    aten.asinh.default: asinh, aten.acosh.default: acosh,
    aten.median.dim: median, aten.argsort.default: argsort, aten.isinf.default: isinf,
    aten.im2col.default: im2col, aten.var_mean.correction: var_mean, aten.avg_pool2d.default: avg_pool,
    aten.roll.default: roll, aten.hypot.default: hypot, aten.diagonal.default: diagonal,
    aten.unfold.default: unfold, aten.trunc.default: trunc, aten.frac.default: frac,
    aten.channel_shuffle.default: channel_shuffle, aten.native_channel_shuffle.default: channel_shuffle,
}  # fmt: skip
