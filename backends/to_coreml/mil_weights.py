"""Compressed constants, and values between integers and reals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from planish.backends.to_coreml.blobs import unpacked
from planish.backends.to_coreml.mil_values import Function, number, numbers, per_channel


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    dim = 0 if axis is None else number(axis)
    limits = torch.iinfo({"int8": torch.int8, "uint8": torch.uint8}[output_dtype])
    integers = (input / per_channel(scale, input.ndim, dim)).round()
    if zero_point is not None:
        integers = integers + per_channel(zero_point, input.ndim, dim)
    return integers.clamp(limits.min, limits.max)


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    dim = 0 if axis is None else number(axis)
    centred = input.float() if zero_point is None else input.float() - per_channel(zero_point, input.ndim, dim).float()
    return centred * per_channel(scale, input.ndim, dim)


def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor) -> Tensor:
    return dequantize(quantized_data, scale, zero_point, axis)


def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    return source_val


def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """One scale a block: each dimension of ``scale`` divides that of ``data``."""
    centred = data.float() if offset is None else data.float() - stretched(offset.float(), data.shape)
    return centred * stretched(scale, data.shape)


def stretched(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Each value repeated over its block of a tensor of ``shape``; dimensions of ``values`` behind those stay."""
    for dim, size in enumerate(shape):
        values = values.repeat_interleave(size // values.shape[dim], dim)
    return values


def lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Tensor | None = None
) -> Tensor:
    """Until iOS 17 the indices are packed bits and ``shape`` says of what; later both are in their types."""
    if shape is not None:
        sizes = numbers(shape)
        bits = lut.numel().bit_length() - 1
        places = unpacked(indices.numpy(), bits, torch.Size(sizes).numel(), signed=False)
        return lut[torch.from_numpy(places).long()].reshape(sizes)
    length = lut.shape[-1]
    tables = stretched(lut, indices.shape)
    chosen = indices.long()[..., None, None].expand(*indices.shape, 1, length)
    vectors = tables.gather(-2, chosen).squeeze(-2)
    if length == 1:
        return vectors.squeeze(-1)
    axis = number(vector_axis) % indices.ndim  # type: ignore[arg-type]  # MIL demands it for vectors
    return vectors.movedim(-1, axis + 1).flatten(axis, axis + 1)


def sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    kept = mask.bool()
    if shape is not None:
        sizes = numbers(shape)
        bits = unpacked(mask.numpy(), 1, torch.Size(sizes).numel(), signed=False)
        kept = torch.from_numpy(bits).bool().reshape(sizes)
    return torch.zeros(kept.shape, dtype=nonzero_data.dtype).masked_scatter(kept, nonzero_data)


def lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    dense = lut_to_dense(sparse_to_dense(indices_nonzero_data, indices_mask), lut, None, vector_axis)
    length = lut.shape[-1]
    mask = indices_mask if length == 1 else indices_mask.repeat_interleave(length, number(vector_axis))  # type: ignore[arg-type]
    return mask, dense[mask.bool()]


def sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.bool()]


OPERATIONS: dict[str, Function] = {
    "quantize": quantize, "dequantize": dequantize, "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_cast": constexpr_cast, "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_lut_to_dense": lut_to_dense, "constexpr_sparse_to_dense": sparse_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
}  # fmt: skip
