"""Coupling rules of the ops that look at positions: pools, interpolation, pixel shuffles, patches, windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.coupling.dims import Dim, product
from planish.compiler.coupling.inference import Inference, Rule, Shape, Type
from planish.compiler.program import arguments

aten = torch.ops.aten


def spatial(rank: int) -> Rule:
    """Pools, interpolation, reflections: the last ``rank`` axes are positions, the others pass."""

    def rule(node: fx.Node, inference: Inference) -> Type:
        x, value = inference.shape(node.args[0]), node.meta["val"]
        inference.freeze(x[len(x) - rank :], "it is a position", node)
        values = [value] if isinstance(value, Tensor) else [*value]
        results = []
        for each in values:
            sizes = [inference.size(size) for size in each.shape[len(x) - rank :]]
            results.append((*x[: len(x) - rank], *inference.frozen(sizes, "it is a position", node)))
        return results[0] if isinstance(value, Tensor) else results

    return rule


def pixel_shuffle(node: fx.Node, inference: Inference) -> Shape:
    """C x r² channels become C."""
    given, x = arguments(node), inference.shape(node.args[0])
    square = inference.frozen([given["upscale_factor"] ** 2], "it becomes positions", node)
    channels = Dim(x[-3].size // square[0].size)
    inference.unify(x[-3], product([channels, *square]))
    return (*x[:-3], channels, *_positions(node, inference, x[-2:]))


def pixel_unshuffle(node: fx.Node, inference: Inference) -> Shape:
    """C channels become C x r²."""
    given, x = arguments(node), inference.shape(node.args[0])
    square = inference.frozen([given["downscale_factor"] ** 2], "it was positions", node)
    return (*x[:-3], product([x[-3], *square]), *_positions(node, inference, x[-2:]))


def patches(node: fx.Node, inference: Inference) -> Shape:
    """``im2col``: C channels become C x kernel², the positions of the kernel one axis."""
    given, x = arguments(node), inference.shape(node.args[0])
    height, width = given["kernel_size"]
    kernel = inference.frozen([height * width], "it was positions", node)
    inference.freeze(x[-2:], "it is a position", node)
    count = inference.frozen(inference.sizes(node)[-1:], "it is a position", node)
    return (*x[:-3], product([x[-3], *kernel]), *count)


def from_patches(node: fx.Node, inference: Inference) -> Shape:
    """``col2im``: C x kernel² channels become C."""
    given, x = arguments(node), inference.shape(node.args[0])
    height, width = given["kernel_size"]
    kernel = inference.frozen([height * width], "it becomes positions", node)
    channels = Dim(x[-2].size // kernel[0].size)
    inference.unify(x[-2], product([channels, *kernel]))
    return (*x[:-2], channels, *_positions(node, inference, x[-1:]))


def _positions(node: fx.Node, inference: Inference, before: Shape) -> Shape:
    """The last two axes of the result, which are positions as those ``before`` are."""
    inference.freeze(before, "it is a position", node)
    return inference.frozen(inference.sizes(node)[-2:], "it is a position", node)


def windows(node: fx.Node, inference: Inference) -> Shape:
    """``unfold`` of one axis into windows."""
    given, x = arguments(node), inference.shape(node.args[0])
    axis = given["dimension"] % len(x)
    inference.freeze([x[axis]], "it is a position", node)
    sizes = inference.sizes(node)
    count, window = inference.frozen([sizes[axis], sizes[-1]], "it is a position", node)
    return (*x[:axis], count, *x[axis + 1 :], window)


def grid_sample(node: fx.Node, inference: Inference) -> Shape:
    x, grid = (inference.shape(argument) for argument in node.args[:2])
    inference.unify(x[0], grid[0])
    inference.freeze([*x[2:], *grid[1:]], "it is a position", node)
    return (*x[:2], *grid[1:-1])


def affine_grid(node: fx.Node, inference: Inference) -> Shape:
    theta = inference.shape(node.args[0])
    inference.freeze(theta[1:], "it maps positions", node)
    return (theta[0], *inference.frozen(inference.sizes(node)[1:], "it is a position", node))


def unpool(node: fx.Node, inference: Inference) -> Type:
    """``max_unpool``: each value goes back to the position that it came from."""
    x, places = (inference.shape(argument) for argument in node.args[:2])
    inference.unify_shapes(x, places)
    return spatial(2 if node.target is aten.max_unpool2d.default else 3)(node, inference)


_POOLS = {
    1: ("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "max_pool1d_with_indices"),
    2: ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool2d_with_indices"),
    3: ("max_pool3d", "avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d", "max_pool3d_with_indices"),
}
_UPSAMPLES = {
    1: ("upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_linear1d"),
    2: ("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
        "upsample_bicubic2d", "_upsample_bicubic2d_aa"),
    3: ("upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_trilinear3d"),
}  # fmt: skip

RULES: dict[Any, Rule] = {
    **{getattr(aten, name): spatial(rank) for names in (_POOLS, _UPSAMPLES) for rank in names for name in names[rank]},
    aten.pixel_shuffle: pixel_shuffle,
    aten.pixel_unshuffle: pixel_unshuffle,
    aten.im2col: patches,
    aten.col2im: from_patches,
    aten.unfold: windows,
    aten.grid_sampler: grid_sample,
    aten.affine_grid_generator: affine_grid,
    **dict.fromkeys((aten.max_unpool2d, aten.max_unpool3d), unpool),
}
