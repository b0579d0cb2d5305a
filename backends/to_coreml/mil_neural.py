"""Layers: convolutions, pools, products, norms, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.backends.to_coreml.mil_values import Function, Unevaluated, number, numbers, per_channel

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
Pairs = list[tuple[int, int]]
"""(before, after) for each spatial dimension."""


def _pads(kind: str, pad: Tensor | None, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]) -> Pairs:
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        amounts = numbers(pad) if pad is not None else [0] * (2 * len(sizes))
        return [(amounts[at], amounts[at + 1]) for at in range(0, len(amounts), 2)]
    pairs = []
    for size, window, stride in zip(sizes, windows, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + window - size, 0)
        small, large = total // 2, total - total // 2
        pairs.append((large, small) if kind == "same_lower" else (small, large))
    return pairs


def _flat(pairs: Pairs) -> list[int]:
    """As torch pads: the last dimension first."""
    return [amount for pair in reversed(pairs) for amount in pair]


def conv(
    x: Tensor,
    weight: Tensor,
    strides: Tensor,
    pad_type: str,
    dilations: Tensor,
    groups: Tensor,
    pad: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    steps, spread = numbers(strides), numbers(dilations)
    windows = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], spread, strict=True)]
    padded = F.pad(x, _flat(_pads(pad_type, pad, x.shape[2:], windows, steps)))
    return _CONVOLUTIONS[x.ndim - 3](padded, weight, bias, steps, 0, spread, number(groups))


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    strides: Tensor,
    pad_type: str,
    dilations: Tensor,
    groups: Tensor,
    pad: Tensor | None = None,
    bias: Tensor | None = None,
    output_shape: Tensor | None = None,
) -> Tensor:
    """The whole result, cut at both ends; where ``output_shape`` asks for more, by less at the far end."""
    if pad_type not in ("valid", "custom"):
        raise Unevaluated("conv_transpose", f"pad_type {pad_type}")
    spread = numbers(dilations)
    whole = _TRANSPOSED[x.ndim - 3](x, weight, None, numbers(strides), 0, 0, number(groups), spread)
    sizes = None if output_shape is None else numbers(output_shape)[2:]
    for dim, (before, after) in enumerate(_pads(pad_type, pad, x.shape[2:], (), ()), start=2):
        size = whole.shape[dim] - before - after if sizes is None else sizes[dim - 2]
        missing = before + size - whole.shape[dim]
        if missing > 0:
            whole = F.pad(whole, [0, 0] * (whole.ndim - 1 - dim) + [0, missing])
        whole = whole.narrow(dim, before, size)
    return whole if bias is None else whole + per_channel(bias, whole.ndim)


def _pool(
    x: Tensor, kernel_sizes: Tensor, strides: Tensor, pad_type: str, pad: Tensor | None, ceil_mode: Tensor
) -> tuple[list[int], list[int], Pairs, bool]:
    windows, steps = numbers(kernel_sizes), numbers(strides)
    pairs, ceil = _pads(pad_type, pad, x.shape[2:], windows, steps), bool(ceil_mode)
    if ceil and any(before != after for before, after in pairs):
        raise Unevaluated("pooling", "ceil_mode with an asymmetric padding")
    return windows, steps, pairs, ceil


def max_pool(
    x: Tensor, kernel_sizes: Tensor, strides: Tensor, pad_type: str, ceil_mode: Tensor, pad: Tensor | None = None
) -> Tensor:
    windows, steps, pairs, ceil = _pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    reached = _reached(x, windows, steps, pairs, ceil)
    return _MAX_POOLS[x.ndim - 3](F.pad(x, _flat(reached), value=-math.inf), windows, steps)


def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor,
    pad_type: str,
    exclude_padding_from_average: Tensor,
    ceil_mode: Tensor,
    pad: Tensor | None = None,
) -> Tensor:
    """Sums over windows, divided by what of each window lies inside the tensor (and its padding, unless excluded)."""
    windows, steps, pairs, ceil = _pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    reached = _reached(x, windows, steps, pairs, ceil)
    inside = torch.ones(1, 1, *x.shape[2:])
    if not bool(exclude_padding_from_average):
        inside = F.pad(inside, _flat(pairs), value=1.0)
        beyond = [(0, far[1] - near[1]) for far, near in zip(reached, pairs, strict=True)]
    else:
        beyond = reached
    counts = _window_sums(F.pad(inside, _flat(beyond)), windows, steps)
    return _window_sums(F.pad(x, _flat(reached)), windows, steps) / counts


def l2_pool(
    x: Tensor, kernel_sizes: Tensor, strides: Tensor, pad_type: str, ceil_mode: Tensor, pad: Tensor | None = None
) -> Tensor:
    windows, steps, pairs, ceil = _pool(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    reached = _reached(x, windows, steps, pairs, ceil)
    return _window_sums(F.pad(x.square(), _flat(reached)), windows, steps).sqrt()


def _reached(x: Tensor, windows: Sequence[int], steps: Sequence[int], pairs: Pairs, ceil: bool) -> Pairs:
    """The padding, and behind it what the last window reaches beyond, where sizes are rounded up.

    A window that would start in the far padding is left out, as in PyTorch.
    """
    if not ceil:
        return pairs
    reached = []
    for size, window, step, (before, after) in zip(x.shape[2:], windows, steps, pairs, strict=True):
        count = math.ceil((size + before + after - window) / step) + 1
        if (count - 1) * step >= size + before:
            count -= 1
        reached.append((before, (count - 1) * step + window - size - before))
    return reached


def _window_sums(x: Tensor, windows: Sequence[int], steps: Sequence[int]) -> Tensor:
    average: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.ndim - 3]
    return average(x, windows, steps) * math.prod(windows)


# ---------------------------------------------------------------------- products


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None) -> Tensor:
    left = x.mT if transpose_x is not None and bool(transpose_x) else x
    right = y.mT if transpose_y is not None and bool(transpose_y) else y
    return left @ right


def einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        truth = attn_mask.dtype is torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if truth else scores + attn_mask
    return scores.softmax(-1) @ value


def softmax(x: Tensor, axis: Tensor) -> Tensor:
    return x.softmax(number(axis))


# ---------------------------------------------------------------------- norms


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=number(epsilon))


def instance_norm(x: Tensor, epsilon: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    normed = _normed(x, [*range(2, x.ndim)], epsilon)
    normed = normed if gamma is None else normed * per_channel(gamma, x.ndim)
    return normed if beta is None else normed + per_channel(beta, x.ndim)


def layer_norm(
    x: Tensor, axes: Tensor, epsilon: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None
) -> Tensor:
    dims = sorted(axis % x.ndim for axis in numbers(axes))
    shape = [x.shape[dim] if dim in dims else 1 for dim in range(x.ndim)]
    normed = _normed(x, dims, epsilon)
    normed = normed if gamma is None else normed * gamma.reshape(shape)
    return normed if beta is None else normed + beta.reshape(shape)


def _normed(x: Tensor, dims: list[int], epsilon: Tensor) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + epsilon).sqrt()


def l2_norm(x: Tensor, epsilon: Tensor) -> Tensor:
    return x / (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()


def local_response_norm(x: Tensor, size: Tensor, alpha: Tensor, beta: Tensor, k: Tensor) -> Tensor:
    return F.local_response_norm(x, number(size), number(alpha), number(beta), number(k))


OPERATIONS: dict[str, Function] = {
    "conv": conv, "conv_transpose": conv_transpose, "max_pool": max_pool, "avg_pool": avg_pool, "l2_pool": l2_pool,
    "linear": linear, "matmul": matmul, "einsum": einsum, "scaled_dot_product_attention": attention,
    "softmax": softmax, "batch_norm": batch_norm, "instance_norm": instance_norm, "layer_norm": layer_norm,
    "l2_norm": l2_norm, "local_response_norm": local_response_norm,
}  # fmt: skip
