"""Resizing of images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.backends.to_coreml.mil_values import Function, Unevaluated, number, numbers, per_channel


def grid(size: int, target: int, mode: str) -> Tensor:
    """Where the ``target`` results lie along a dimension of ``size`` values: the documentation of resize_bilinear."""
    steps = torch.arange(target, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if target == 1:
            places = steps + ((size - 1) / 2 if mode == "ALIGN_CORNERS" else 0)
        else:
            places = steps * (size - 1) / (target - 1)
    elif mode == "DEFAULT":
        places = steps * ((size - size / target) / (target - 1) if target > 1 else 0)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / target
        places = 0.5 * delta + steps * delta
    elif mode == "UNALIGN_CORNERS":
        places = (steps + 0.5) * size / target - 0.5
    else:
        raise Unevaluated("resize", f"sampling_mode {mode}")
    return places.clamp(0, size - 1)


def _linear(x: Tensor, dim: int, places: Tensor) -> Tensor:
    low = places.floor().long()
    high = (low + 1).clamp(max=x.shape[dim] - 1)
    share = per_channel((places - low).to(torch.float32), x.ndim, dim)
    return x.index_select(dim, low) * (1 - share) + x.index_select(dim, high) * share


def _nearest(x: Tensor, dim: int, target: int, scale: float) -> Tensor:
    places = (torch.arange(target, dtype=torch.float64) / scale).floor().long().clamp(max=x.shape[dim] - 1)
    return x.index_select(dim, places)


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: Tensor, scale_factor_width: Tensor) -> Tensor:
    for dim, factor in ((-2, number(scale_factor_height)), (-1, number(scale_factor_width))):
        x = _nearest(x, dim, math.floor(x.shape[dim] * factor), factor)
    return x


def resize_nearest_neighbor(x: Tensor, target_size_height: Tensor, target_size_width: Tensor) -> Tensor:
    for dim, target in ((-2, number(target_size_height)), (-1, number(target_size_width))):
        x = _nearest(x, dim, target, target / x.shape[dim])
    return x


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Tensor,
    scale_factor_width: Tensor,
    align_corners: Tensor,
    half_pixel_centers: Tensor | None = None,
) -> Tensor:
    """With align_corners the corners meet; without, pixels lie at the middle of their area. Scales are as given."""
    halves = not bool(align_corners) if half_pixel_centers is None else bool(half_pixel_centers)
    for dim, factor in ((-2, number(scale_factor_height)), (-1, number(scale_factor_width))):
        size = x.shape[dim]
        target = math.floor(size * factor)
        if bool(align_corners):
            places = grid(size, target, "STRICT_ALIGN_CORNERS")
        else:
            steps = torch.arange(target, dtype=torch.float64)
            places = (steps + 0.5) / factor - 0.5 if halves else steps / factor
        x = _linear(x, dim, places.clamp(0, size - 1))
    return x


def resize_bilinear(
    x: Tensor, target_size_height: Tensor, target_size_width: Tensor, sampling_mode: str = "DEFAULT"
) -> Tensor:
    for dim, target in ((-2, number(target_size_height)), (-1, number(target_size_width))):
        x = _linear(x, dim, grid(x.shape[dim], target, sampling_mode))
    return x


def resize(
    x: Tensor,
    shape: Tensor,
    resized_dims: Tensor,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    count = number(resized_dims)
    for dim, target in zip(range(x.ndim - count, x.ndim), numbers(shape)[-count:], strict=True):
        wanted = target or x.shape[dim]
        if interpolation_mode == "LINEAR":
            x = _linear(x, dim, grid(x.shape[dim], wanted, sampling_mode))
        elif sampling_mode == "DEFAULT":
            x = _nearest(x, dim, wanted, wanted / x.shape[dim])
        else:
            raise Unevaluated("resize", f"nearest neighbor with sampling_mode {sampling_mode}")
    return x


def crop(x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    for dim, (before, after) in ((-2, numbers(crop_height)), (-1, numbers(crop_width))):
        x = x.narrow(dim, before, x.shape[dim] - before - after)
    return x


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Tensor,
    coordinates_mode: str,
    align_corners: Tensor,
) -> Tensor:
    known = {"constant": "zeros", "border": "border"}
    if padding_mode not in known or coordinates_mode != "normalized_minus_one_to_one" or bool(padding_value != 0):
        raise Unevaluated("resample", f"padding {padding_mode}, coordinates {coordinates_mode}")
    return F.grid_sample(x, coordinates, sampling_mode, known[padding_mode], bool(align_corners))


OPERATIONS: dict[str, Function] = {
    "upsample_nearest_neighbor": upsample_nearest_neighbor, "resize_nearest_neighbor": resize_nearest_neighbor,
    "upsample_bilinear": upsample_bilinear, "resize_bilinear": resize_bilinear, "resize": resize, "crop": crop,
    "resample": resample,
}  # fmt: skip
