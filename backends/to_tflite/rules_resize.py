"""Resizing: each dimension by a matrix that PyTorch itself tells, or by TFLite's operator where that is the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_pool import mixed
from planish.backends.to_tflite.rules_shape import take
from planish.backends.to_tflite.values import Value, channels_last
from planish.compiler.resizing import resize_matrices
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def matrices(e: Emitter, x: Value, args: tuple[Any, ...]) -> list[Tensor]:
    """[new, old] for each spatial dimension."""
    return resize_matrices(e.node.target, args, x.sizes[2:], e.fake_result().shape[2:])


def linear(e: Emitter, x: Value, *args: Any) -> Any:
    found = matrices(e, x, args)
    for corners, centers in ((False, True), (True, False), (False, False)):
        own = [_tflite_matrix(len(matrix), matrix.shape[1], corners, centers) for matrix in found]
        if len(found) == 2 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, own, strict=True)):
            return _resized(e, "RESIZE_BILINEAR", x, corners, centers)
    return by_matrices(e, x, *args)


def by_matrices(e: Emitter, x: Value, *args: Any) -> Any:
    for dim, matrix in enumerate(matrices(e, x, args), start=2):
        x = mixed(e, x, dim, matrix)
    return x


def nearest(e: Emitter, x: Value, *args: Any) -> Any:
    places = [matrix.argmax(1) for matrix in matrices(e, x, args)]
    for centers in (False, True):
        own = [_tflite_places(x.sizes[2 + axis], len(found), centers) for axis, found in enumerate(places)]
        if len(places) == 2 and all(torch.equal(a, b) for a, b in zip(places, own, strict=True)):
            return _resized(e, "RESIZE_NEAREST_NEIGHBOR", x, False, centers)
    for dim, found in enumerate(places, start=2):
        x = take(e, x, dim, found)
    return x


def _resized(e: Emitter, kind: str, x: Value, corners: bool, centers: bool) -> Value:
    image, sizes = e.at(x, channels_last(4)), [*e.fake_result().shape[2:]]
    shape = (image.shape[0], *sizes, image.shape[3])
    return e.move(kind, image, e.numbers(sizes), shape=shape, alignCorners=corners, halfPixelCenters=centers)


def _source(old: int, new: int, corners: bool, centers: bool) -> Tensor:
    """Where each new pixel reads, as TFLite's resize_bilinear.h has it."""
    scale = (old - 1) / (new - 1) if corners and new > 1 else old / new
    places = torch.arange(new, dtype=torch.float32)
    return (places + 0.5) * scale - 0.5 if centers else places * scale


def _tflite_matrix(new: int, old: int, corners: bool, centers: bool) -> Tensor:
    source = _source(old, new, corners, centers)
    low = source.floor().clamp_min(0)
    share = (source - source.floor()).where(source >= 0, torch.zeros(()))
    matrix, rows = torch.zeros(new, old), torch.arange(new)
    low = low.long().clamp_max(old - 1)
    matrix[rows, low] += 1 - share
    matrix[rows, (low + 1).clamp_max(old - 1)] += share
    return matrix


def _tflite_places(old: int, new: int, centers: bool) -> Tensor:
    places = torch.arange(new, dtype=torch.float32) + (0.5 if centers else 0.0)
    return (places * (old / new)).floor().long().clamp(0, old - 1)


RULES: dict[Operator, Rule] = {
    aten.upsample_nearest1d.vec: nearest, aten.upsample_nearest2d.vec: nearest, aten.upsample_nearest3d.vec: nearest,
    aten._upsample_nearest_exact1d.vec: nearest, aten._upsample_nearest_exact2d.vec: nearest,
    aten._upsample_nearest_exact3d.vec: nearest,
    aten.upsample_linear1d.vec: by_matrices, aten.upsample_bilinear2d.vec: linear,
    aten.upsample_trilinear3d.vec: by_matrices, aten.upsample_bicubic2d.vec: by_matrices,
    aten._upsample_bilinear2d_aa.vec: by_matrices, aten._upsample_bicubic2d_aa.vec: by_matrices,
}  # fmt: skip
