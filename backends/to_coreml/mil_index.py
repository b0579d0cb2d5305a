"""Gathers, scatters, and tensors made from sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from planish.backends.to_coreml.mil_values import Function, number, numbers
from planish.compiler.errors import UserError


def _places(indices: Tensor, size: int) -> Tensor:
    """From iOS 17 on Core ML does not define what indices outside of the tensor read, negative ones included."""
    places = indices.long()
    if places.numel() and (int(places.min()) < 0 or int(places.max()) >= size):
        raise UserError(f"Give indices from 0 to {size - 1}: Core ML does not define what {int(places.min())} … reads.")
    return places


def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,
) -> Tensor:
    dim = number(axis) % x.ndim
    shared = 0 if batch_dims is None else number(batch_dims)
    places = _places(indices, x.shape[dim])
    if not shared:
        picked = x.index_select(dim, places.flatten())
        return picked.reshape((*x.shape[:dim], *indices.shape, *x.shape[dim + 1 :]))
    rows, chosen = x.flatten(0, shared - 1), places.flatten(0, shared - 1)
    parts = [gather(row, own, torch.tensor(dim - shared)) for row, own in zip(rows, chosen, strict=True)]
    return torch.stack(parts).reshape((*x.shape[:shared], *parts[0].shape))


def gather_along_axis(x: Tensor, indices: Tensor, axis: Tensor, validate_indices: Tensor | None = None) -> Tensor:
    dim = number(axis) % x.ndim
    return x.take_along_dim(_places(indices, x.shape[dim]), dim)


def _tuples(indices: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """The last dimension of ``indices`` names a place, one number a dimension."""
    return tuple(_places(indices[..., at], shape[at]) for at in range(indices.shape[-1]))


def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: Tensor | None = None, validate_indices: Tensor | None = None
) -> Tensor:
    shared = 0 if batch_dims is None else number(batch_dims)
    if not shared:
        return x[_tuples(indices, x.shape)]
    rows, chosen = x.flatten(0, shared - 1), indices.flatten(0, shared - 1)
    parts = [gather_nd(row, own) for row, own in zip(rows, chosen, strict=True)]
    return torch.stack(parts).reshape((*x.shape[:shared], *parts[0].shape))


def _put(data: Tensor, where: tuple[Tensor, ...], updates: Tensor, mode: str) -> Tensor:
    if mode == "update":
        return data.index_put(where, updates)
    if mode == "add":
        return data.index_put(where, updates, accumulate=True)
    if mode == "sub":
        return data.index_put(where, -updates, accumulate=True)
    flat = torch.zeros((), dtype=torch.int64)
    for dim, size in enumerate(data.shape[: len(where)]):
        flat = flat * size + where[dim]
    rest = data.shape[len(where) :]
    rows = data.reshape(-1, rest.numel())
    places, values = flat.reshape(-1), updates.expand(*flat.shape, *rest).reshape(-1, rest.numel())
    reduce = {"mul": "prod", "div": "prod", "max": "amax", "min": "amin"}[mode]
    values = 1 / values if mode == "div" else values
    return rows.scatter_reduce(0, places[:, None].expand(values.shape), values, reduce).reshape(data.shape)


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor,
    mode: str = "add",
    validate_indices: Tensor | None = None,
) -> Tensor:
    dim = number(axis) % data.ndim
    moved = data.movedim(dim, 0)
    return _put(moved, (_places(indices, moved.shape[0]),), updates.movedim(dim, 0), mode).movedim(0, dim)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor,
    mode: str = "add",
    validate_indices: Tensor | None = None,
) -> Tensor:
    dim = number(axis) % data.ndim
    grid = [*torch.meshgrid([torch.arange(size) for size in indices.shape], indexing="ij")]
    grid[dim] = _places(indices, data.shape[dim])
    return _put(data, tuple(grid), updates, mode)


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: Tensor | None = None
) -> Tensor:
    return _put(data, _tuples(indices, data.shape), updates, mode)


def one_hot(indices: Tensor, one_hot_vector_size: Tensor, axis: Tensor, on_value: Tensor, off_value: Tensor) -> Tensor:
    hot = indices[..., None] == torch.arange(number(one_hot_vector_size))
    return torch.where(hot.movedim(-1, number(axis)), on_value, off_value)


def non_zero(x: Tensor) -> Tensor:
    return x.nonzero()


def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    return torch.arange(number(start), number(end), number(step), dtype=end.dtype)


def fill(shape: Tensor, value: Tensor) -> Tensor:
    return value.expand(numbers(shape))


def fill_like(ref_tensor: Tensor, value: Tensor) -> Tensor:
    return value.expand(ref_tensor.shape)


def classify(probabilities: Tensor, classes: list[str]) -> tuple[str, dict[str, float]]:
    scores = numbers(probabilities)
    return classes[int(probabilities.flatten().argmax())], dict(zip(classes, scores, strict=True))


OPERATIONS: dict[str, Function] = {
    "gather": gather, "gather_along_axis": gather_along_axis, "gather_nd": gather_nd, "scatter": scatter,
    "scatter_along_axis": scatter_along_axis, "scatter_nd": scatter_nd, "one_hot": one_hot, "non_zero": non_zero,
    "classify": classify, "range_1d": range_1d, "fill": fill, "fill_like": fill_like,
}  # fmt: skip
