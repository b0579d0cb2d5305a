"""Pooling and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Size, Value
from planish.backends.to_onnx.rules_conv import batched, each
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def max_pool(
    e: Emitter, x: Value, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), ceil_mode: bool = False,
) -> Value:  # fmt: skip
    return _max_pool(e, x, kernel, stride, padding, dilation, ceil_mode, outputs=1)[0]


def max_pool_with_indices(
    e: Emitter, x: Value, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), ceil_mode: bool = False,
) -> list[Value]:  # fmt: skip
    """ONNX counts positions through the whole tensor, PyTorch within each channel."""
    if all(user.args[1] == 0 for user in e.node.users):
        return [max_pool(e, x, kernel, stride, padding, dilation, ceil_mode)]
    if e.fake(0).ndim != len(kernel) + 2:
        raise e.fail("max pooling with indices and without a batch")
    best, places = _max_pool(e, x, kernel, stride, padding, dilation, ceil_mode, outputs=2)
    area = e.op("ReduceProd", e.op("Shape", x, start=2), keepdims=0)
    return [best, e.op("Mod", places, area)]


def _max_pool(
    e: Emitter, x: Value, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, outputs: int
) -> Sequence[Value]:
    spatial = _spatial(e, kernel)
    kernel, padding, dilation = each(kernel, spatial), each(padding, spatial), each(dilation, spatial)
    stride = each(stride or kernel, spatial)
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    more = _ceil_padding(e, reach, stride, padding) if ceil else [0] * spatial
    attributes: dict[str, Any] = {
        "kernel_shape": kernel, "strides": stride, "dilations": dilation,
        "pads": [*padding, *(a + b for a, b in zip(padding, more or [0] * spatial, strict=True))],
        "ceil_mode": int(more is None),
    }  # fmt: skip
    if outputs == 2:
        return e.multi("MaxPool", 2, x, **attributes)
    return [batched(e, x, spatial, lambda value: e.op("MaxPool", value, **attributes))]


def _spatial(e: Emitter, kernel: Sequence[int]) -> int:
    """The name ends in the number of dimensions (max_pool2d, avg_pool3d_with_indices)."""
    name = e.node.target._schema.name  # type: ignore[union-attr]
    return int(name[name.index("pool") + 4])


def _ceil_padding(e: Emitter, reach: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> list[int] | None:
    """What the end needs so that rounding down gives PyTorch's size; None where the sizes are dynamic."""
    spatial = len(reach)
    result = e.node.meta["val"]
    before, after = e.fake(0).shape[-spatial:], (result[0] if isinstance(result, tuple) else result).shape[-spatial:]
    if not all(isinstance(s, int) for s in (*before, *after)):
        return None
    return [
        max((out - 1) * step + size - own - 2 * pad, 0)
        for own, out, size, step, pad in zip(before, after, reach, stride, padding, strict=True)
    ]


def avg_pool(
    e: Emitter, x: Value, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    spatial = _spatial(e, kernel)
    kernel, padding = each(kernel, spatial), each(padding, spatial)
    stride = each(stride or kernel, spatial)
    more = _ceil_padding(e, kernel, stride, padding) if ceil_mode else [0] * spatial
    if more is None:
        raise e.fail("average pooling that rounds a dynamic size up")

    def apply(value: Value) -> Value:
        own = padding
        if any(own) and any(more) and count_include_pad:  # the padding counts, what rounding up adds does not
            zeros = [0, 0, *own]
            value, own = e.op("Pad", value, e.constant([*zeros, *zeros]), mode="constant"), [0] * spatial
        counted = int(count_include_pad and not any(more))
        pads = [*own, *(a + b for a, b in zip(own, more, strict=True))]
        return e.op("AveragePool", value, kernel_shape=kernel, strides=stride, pads=pads, count_include_pad=counted)

    if divisor_override is None:
        return batched(e, x, spatial, apply)
    if any(more) or not count_include_pad:
        raise e.fail("average pooling that rounds up, with a divisor")
    factor = e.constant(math.prod(kernel) / divisor_override, e.result_dtype())
    return e.op("Mul", batched(e, x, spatial, apply), factor)


# ---------------------------------------------------------------------- adaptive pooling


def adaptive_average(e: Emitter, x: Value, size: Sequence[int]) -> Value:
    even = _even_windows(e, x, size, "AveragePool", "GlobalAveragePool")
    if even is not None:
        return even
    rank = e.fake(0).ndim
    for dim, (windows, _) in zip(range(rank - len(size), rank), _windows(e, size), strict=True):
        matrix = torch.zeros(int(e.fake(0).shape[dim]), len(windows), dtype=e.fake(0).dtype)
        for column, (start, end) in enumerate(windows):
            matrix[start:end, column] = 1 / (end - start)
        order = [*range(rank)]
        order[dim], order[-1] = order[-1], order[dim]
        last = dim == rank - 1
        mixed = e.op(
            "MatMul", x if last else e.op("Transpose", x, perm=order), e.constant(matrix.tolist(), matrix.dtype)
        )
        x = mixed if last else e.op("Transpose", mixed, perm=order)
    return x


def adaptive_max(e: Emitter, x: Value, size: Sequence[int]) -> list[Value]:
    if any(user.args[1] != 0 for user in e.node.users if e.node.meta["val"].__class__ is tuple):
        raise e.fail("the positions of adaptive max pooling")
    even = _even_windows(e, x, size, "MaxPool", "GlobalMaxPool")
    if even is not None:
        return [even]
    rank = e.fake(0).ndim
    for dim, (windows, longest) in zip(range(rank - len(size), rank), _windows(e, size), strict=True):
        places = [[min(start + step, end - 1) for step in range(longest)] for start, end in windows]
        x = e.op("ReduceMax", e.op("Gather", x, e.constant(places), axis=dim), e.constant([dim + 1]), keepdims=0)
    return [x]


def _even_windows(e: Emitter, x: Value, size: Sequence[int], kind: str, whole: str) -> Value | None:
    fake, spatial = e.fake(0), len(size)
    inner = fake.shape[-spatial:]
    wanted = [own if s is None else s for own, s in zip(inner, size, strict=True)]
    if all(s == 1 for s in wanted):
        return batched(e, x, spatial, lambda value: e.op(whole, value))
    if any(not isinstance(own, int) or own % s for own, s in zip(inner, wanted, strict=True)):
        return None
    kernel = [int(own) // s for own, s in zip(inner, wanted, strict=True)]
    if all(k == 1 for k in kernel):
        return x
    return batched(e, x, spatial, lambda value: e.op(kind, value, kernel_shape=kernel, strides=kernel))


def _windows(e: Emitter, size: Sequence[int]) -> list[tuple[list[tuple[int, int]], int]]:
    """For each spatial dimension the windows (start, end) that PyTorch pools over, and the longest."""
    found = []
    for own, wanted in zip(e.fake(0).shape[-len(size) :], size, strict=True):
        if not isinstance(own, int):
            raise e.fail("adaptive pooling of a dynamic size")
        count = own if wanted is None else wanted
        windows = [(place * own // count, -(-(place + 1) * own // count)) for place in range(count)]
        found.append((windows, max(end - start for start, end in windows)))
    return found


# ---------------------------------------------------------------------- resizing


def resize(mode: str, coordinates: str = "", **attributes: Any) -> Rule:
    """The ``.vec`` overloads: an output size or scale factors, as the model gave them."""

    def rule(e: Emitter, x: Value, size: Sequence[Size] | None, *rest: Any) -> Value:
        align, factors = (False, rest[0]) if coordinates else (rest[0], rest[1])
        where = coordinates or ("align_corners" if align else "half_pixel")
        options = {"mode": mode, "coordinate_transformation_mode": where, **attributes}
        if factors is not None:
            scales = e.constant([1.0, 1.0, *(float(f) for f in factors)], torch.float32)
            return e.op("Resize", x, None, scales, **options)
        assert size is not None
        target = e.op("Concat", e.op("Shape", x, start=0, end=2), e.sizes(size), axis=0)
        return e.op("Resize", x, None, None, target, **options)

    return rule


def grid_sample(e: Emitter, x: Value, grid: Value, mode: int, padding: int, align: bool) -> Value:
    names = ("linear", "nearest", "cubic") if e.opset >= 20 else ("bilinear", "nearest", "bicubic")
    edges = ("zeros", "border", "reflection")[padding]
    return e.op("GridSample", x, grid, mode=names[mode], padding_mode=edges, align_corners=int(align))


_nearest = resize("nearest", "asymmetric", nearest_mode="floor")
_exact = resize("nearest", "half_pixel", nearest_mode="round_prefer_ceil")
_cubic = resize("cubic", cubic_coeff_a=-0.75)

RULES: dict[Operator, Rule] = {
    aten.max_pool1d.default: max_pool, aten.max_pool2d.default: max_pool, aten.max_pool3d.default: max_pool,
    aten.max_pool1d_with_indices.default: max_pool_with_indices,
    aten.max_pool2d_with_indices.default: max_pool_with_indices,
    aten.max_pool3d_with_indices.default: max_pool_with_indices,
    aten.avg_pool1d.default: avg_pool, aten.avg_pool2d.default: avg_pool, aten.avg_pool3d.default: avg_pool,
    aten.adaptive_avg_pool1d.default: adaptive_average, aten.adaptive_avg_pool2d.default: adaptive_average,
    aten.adaptive_avg_pool3d.default: adaptive_average, aten._adaptive_avg_pool2d.default: adaptive_average,
    aten._adaptive_avg_pool3d.default: adaptive_average, aten.adaptive_max_pool1d.default: adaptive_max,
    aten.adaptive_max_pool2d.default: adaptive_max, aten.adaptive_max_pool3d.default: adaptive_max,
    aten.upsample_nearest1d.vec: _nearest, aten.upsample_nearest2d.vec: _nearest,
    aten.upsample_nearest3d.vec: _nearest,
    aten._upsample_nearest_exact1d.vec: _exact, aten._upsample_nearest_exact2d.vec: _exact,
    aten._upsample_nearest_exact3d.vec: _exact,
    aten.upsample_linear1d.vec: resize("linear"), aten.upsample_bilinear2d.vec: resize("linear"),
    aten.upsample_trilinear3d.vec: resize("linear"), aten.upsample_bicubic2d.vec: _cubic,
    aten._upsample_bilinear2d_aa.vec: resize("linear", antialias=1),
    aten._upsample_bicubic2d_aa.vec: resize("cubic", cubic_coeff_a=-0.5, antialias=1, exclude_outside=1),
    aten.grid_sampler.default: grid_sample, aten.grid_sampler_2d.default: grid_sample,
}  # fmt: skip
