"""Ops whose results depend on removed indices even where these are zero, without them.

Each takes the op, its arguments by name, and of each argument that is a tensor which indices are left: ``Masks``. The
result has the full size; at removed indices it may be anything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Masks = tuple[Tensor | None, ...]
"""Of each dimension of a tensor: bool, whether the index is left; None for all."""
Given = dict[str, Any]
MaskedOp = Callable[[Any, Given, dict[str, Any]], Any]


def over_kept(op: Any, given: Given, masks: dict[str, Any]) -> Any:
    """mean, var, norm …: over what is left of the reduced axes. The max of two tensors reduces nothing."""
    if "other" in given:
        return op(**given)
    first, x = next(iter(given.items()))
    named = given.get("dim", given.get("dims"))
    axes = range(x.ndim) if named is None or named == [] else [named] if isinstance(named, int) else named
    return op(**given | {first: _kept(x, masks[first], [axis % x.ndim for axis in axes if x.ndim])})


def loss(op: Any, given: Given, masks: dict[str, Any]) -> Tensor:
    """mse_loss, huber_loss …: position by position, then over what is left of these."""
    values, reduction = op(**given | {"reduction": 0}), given["reduction"]
    operands = [masks[name] for name, value in given.items() if isinstance(value, Tensor)]
    columns = itertools.zip_longest(*(reversed(of_value) for of_value in operands))
    common = [next((mask for mask in column if mask is not None), None) for column in columns][::-1]
    kept = _kept(values, tuple(common), range(values.ndim))
    return [values, kept.mean(), kept.sum()][reduction]


def distance_of_rows(op: Any, given: Given, masks: dict[str, Any]) -> Tensor:
    """pairwise_distance: over what is left of the last axis. It adds ``eps`` to each difference."""
    rows = {name: _kept(given[name], masks[name][-1:], [-1]) for name in ("x1", "x2")}
    result: Tensor = op(**given | rows)
    return result


def norm_of_last(op: Any, given: Given, masks: dict[str, Any]) -> Tensor:
    """layer_norm, rms_norm."""
    x = given["input"]
    return _normalized(op, given, masks, range(x.ndim - len(given["normalized_shape"]), x.ndim))


def norm_of_positions(op: Any, given: Given, masks: dict[str, Any]) -> Tensor:
    """instance_norm, batch_norm: axis 1 is normalized index by index."""
    axes = [axis for axis in range(given["input"].ndim) if axis != 1]
    return _normalized(op, given, masks, axes)


def _normalized(op: Any, given: Given, masks: dict[str, Any], axes: Iterable[int]) -> Tensor:
    """The op on what is left of ``axes``, put back where it was."""
    x = given["input"]
    left = {axis: mask for axis in axes if (mask := masks["input"][axis]) is not None}
    smaller = given | {"input": _kept(x, masks["input"], left)}
    if "normalized_shape" in given:
        count = len(given["normalized_shape"])
        smaller["normalized_shape"] = [*smaller["input"].shape[-count:]]
        for name in ("weight", "bias"):
            if given.get(name) is not None:
                smaller[name] = _kept(given[name], masks["input"][-count:], range(count))
    return _put_back(op(**smaller), x, left)


def norm_of_groups(op: Any, given: Given, masks: dict[str, Any]) -> Tensor:
    """Mean and variance of each group, over what is left of its channels."""
    x, groups = given["input"], given["num_groups"]
    channels = masks["input"][1]
    if channels is None:
        channels = torch.ones(x.shape[1], dtype=torch.bool)
    result = torch.zeros_like(x)
    for members in torch.arange(x.shape[1]).view(groups, -1):
        left = members[channels[members]]
        if len(left):
            values = x[:, left].flatten(1)
            centered = values - values.mean(1, keepdim=True)
            scaled = centered / (centered.square().mean(1, keepdim=True) + given["eps"]).sqrt()
            result[:, left] = scaled.view_as(x[:, left])
    shape = (1, -1, *(1 for _ in range(x.ndim - 2)))
    if given["weight"] is not None:
        result = result * given["weight"].view(shape)
    return result if given["bias"] is None else result + given["bias"].view(shape)


def zero_where_removed(op: Any, given: Given, masks: dict[str, Any]) -> Any:
    """Products: an activation need not be zero where its channel is removed (a sigmoid, exp), nor finite."""
    return op(**given | {name: _zeroed(given[name], of_value) for name, of_value in masks.items()})


def attention(op: Any, given: Given, masks: dict[str, Any]) -> Tensor:
    """With the scale of the full width."""
    scale = given["scale"] if given["scale"] is not None else 1 / math.sqrt(given["query"].shape[-1])
    result: Tensor = zero_where_removed(op, given | {"scale": scale}, masks)
    return result


def _zeroed(value: Any, masks: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_zeroed(*pair) for pair in zip(value, masks, strict=True)]
    if isinstance(value, Tensor):
        for axis, mask in enumerate(masks):
            if mask is not None:
                value = value.index_fill(axis, (~mask).nonzero().flatten(), 0)
    return value


def _kept(x: Tensor, masks: Masks, axes: Iterable[int]) -> Tensor:
    for axis in axes:
        mask = masks[axis]
        if mask is not None:
            x = x.index_select(axis, mask.nonzero().flatten())
    return x


def _put_back(values: Tensor, whole: Tensor, left: dict[int, Tensor]) -> Tensor:
    if not left:
        return values
    result = torch.zeros_like(whole)
    indices = [torch.arange(size) for size in whole.shape]
    for axis, mask in left.items():
        indices[axis] = mask.nonzero().flatten()
    result[torch.meshgrid(*indices, indexing="ij")] = values
    return result


_REDUCTIONS = (
    aten.mean, aten.sum, aten.amax, aten.amin, aten.max, aten.min, aten.var, aten.std, aten.norm, aten.prod, aten.any,
    aten.all, aten.linalg_vector_norm, aten.logsumexp, aten.var_mean, aten.std_mean, aten.nansum, aten.aminmax,
    aten.count_nonzero, aten.median,
)  # fmt: skip
_PRODUCTS = (
    aten.conv1d, aten.conv2d, aten.conv3d, aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d,
    aten.linear, aten.matmul, aten.mm, aten.bmm, aten.mv, aten.dot, aten.addmm, aten.baddbmm, aten.einsum,
    aten.bilinear, aten.cosine_similarity, aten.tensordot, aten.vdot, aten.inner, aten.cdist, aten._grouped_mm,
    aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu,
)  # fmt: skip

MASKED: dict[Any, MaskedOp] = {
    **dict.fromkeys(_REDUCTIONS, over_kept),
    **dict.fromkeys((aten.layer_norm, aten.rms_norm), norm_of_last),
    **dict.fromkeys((aten.batch_norm, aten.instance_norm), norm_of_positions),
    aten.group_norm: norm_of_groups,
    **dict.fromkeys(_PRODUCTS, zero_where_removed),
    aten.scaled_dot_product_attention: attention,
    aten.pairwise_distance: distance_of_rows,
    **dict.fromkeys((aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss), loss),
    **dict.fromkeys((aten.binary_cross_entropy, aten.binary_cross_entropy_with_logits), loss),
}
