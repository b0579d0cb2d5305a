"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from planish.backends.to_tflite import integers
from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_conv import SAME, Pads, each, padded
from planish.backends.to_tflite.rules_index import gather
from planish.backends.to_tflite.rules_reduce import position, reduce
from planish.backends.to_tflite.rules_shape import take
from planish.backends.to_tflite.values import Value, channels_last
from planish.compiler.scheme import Operator

aten = torch.ops.aten
_NOT_NEGATIVE = frozenset({
    aten.relu.default, aten.relu6.default, aten.sigmoid.default, aten.softmax.int, aten.abs.default,
    aten.hardsigmoid.default,
})  # fmt: skip
_HAND_ON = frozenset({*integers.MOVING, integers.QUANTIZE, integers.DEQUANTIZE})


def max_pool(
    e: Emitter, x: Value, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,), ceil_mode: bool = False,
) -> Any:  # fmt: skip
    """Zeros pad as well as the lowest number does where nothing is negative, and every delegate has them."""
    if any(step != 1 for step in each(dilation, 1)):
        raise e.fail("max pooling with a dilation")
    image, kernel, stride, pads, out = _window(e, x, kernel, stride, padding)
    image, name = padded(e, image, pads, kernel, stride, out, lowest=not _not_negative(e.node.args[0]))
    y = e.move("MAX_POOL_2D", image, shape=(image.shape[0], *out, image.shape[3]), **_options(name, kernel, stride))
    return e.reshape(y, e.fake_result().shape)


def max_pool_with_indices(
    e: Emitter, x: Value, kernel: Any, stride: Any = (), padding: Any = (0,), *rest: Any
) -> list[Any]:
    pooled = max_pool(e, x, kernel, stride, padding, *rest)
    used = any(user.args[1] != 0 for user in e.node.users)
    return [pooled, _best_places(e, x, kernel, stride, padding) if used else None]


def _best_places(e: Emitter, x: Value, kernel: Any, stride: Any, padding: Any) -> Any:
    """Where in its image each largest value stands, row by row: the windows side by side, and ARG_MAX."""
    image, kernel, stride, pads, out = _window(e, x, kernel, stride, padding)
    batch, channels, height, width = image.sizes
    rows, columns = (
        (torch.arange(count)[:, None] * step - before + torch.arange(size)).clamp(0, limit - 1)
        for count, step, (before, _), size, limit in zip(out, stride, pads, kernel, (height, width), strict=True)
    )
    windows = take(e, take(e, image, 2, rows.flatten()), 3, columns.flatten())
    cut = e.reshape(windows, (batch, channels, out[0], kernel[0], out[1], kernel[1]))
    side = e.reshape(e.permute(cut, [0, 1, 2, 4, 3, 5]), (batch, channels, *out, kernel[0] * kernel[1]))
    best = position(e, "ARG_MAX", e.real(side), 4)
    table = (rows[:, None, :, None] * width + columns[None, :, None, :]).reshape(*out, -1).to(torch.int32)
    return e.reshape(
        gather(e, table.expand(batch, channels, -1, -1, -1), 4, e.reshape(best, (*best.sizes, 1))),
        e.node.meta["val"][1].shape,
    )


def _not_negative(node: Any) -> bool:
    while isinstance(node, fx.Node) and node.target in _HAND_ON:
        node = node.args[0]
    return isinstance(node, fx.Node) and node.target in _NOT_NEGATIVE


def _options(name: int, kernel: Sequence[int], stride: Sequence[int]) -> dict[str, int]:
    return {
        "padding": name, "strideH": stride[0], "strideW": stride[1], "filterHeight": kernel[0],
        "filterWidth": kernel[1],
    }  # fmt: skip


def _window(
    e: Emitter, x: Value, kernel: Any, stride: Any, padding: Any
) -> tuple[Value, list[int], list[int], Pads, list[int]]:
    """The input as an image, channels last, and the windows in two dimensions: [kernel, stride, pads, out]."""
    name = e.node.target._schema.name  # type: ignore[union-attr]
    spatial = int(name[name.index("pool") + 4])
    kernel, padding = each(kernel, spatial), each(padding, spatial)
    stride = each(stride or kernel, spatial)
    pads = [(amount, amount) for amount in padding]
    result = e.node.meta["val"]
    out = [*(result[0] if isinstance(result, tuple) else result).shape[-spatial:]]
    rank = len(x.order)
    sizes = x.sizes if rank == spatial + 2 else (1, *x.sizes)
    if spatial == 1:
        sizes, kernel, stride, pads, out = (
            (*sizes[:2], 1, sizes[2]),
            [1, *kernel],
            [1, *stride],
            [(0, 0), *pads],
            [1, *out],
        )
    image = e.reshape(x, sizes)
    assert isinstance(image, Value)
    return e.at(image, channels_last(4)), kernel, stride, pads, out


def avg_pool(
    e: Emitter, x: Value, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,),
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Any:  # fmt: skip
    """AVERAGE_POOL_2D divides by what lies inside the image; where PyTorch counts otherwise, a factor follows."""
    image, kernel, stride, pads, out = _window(e, x, kernel, stride, padding)
    moved, name = padded(e, image, pads, kernel, stride, out)
    options = _options(name, kernel, stride)
    factor = _factor(image, kernel, stride, pads, out, name, count_include_pad, divisor_override)
    if factor is not None:
        moved = e.real(moved)
    y = e.move("AVERAGE_POOL_2D", moved, shape=(moved.shape[0], *out, moved.shape[3]), **options)
    if factor is not None:
        y = e.op("MUL", y, e.at(factor, channels_last(4)))
    return e.reshape(y, e.fake_result().shape)


def _factor(
    image: Value, kernel: Sequence[int], stride: Sequence[int], pads: Pads, out: Sequence[int], name: int,
    include: bool, divisor: int | None,
) -> Tensor | None:  # fmt: skip
    """[1, 1, H, W]: TFLite's divisor over PyTorch's; None if they are the same everywhere."""
    ours, theirs = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    for axis, (size, far, step, pad_, count) in enumerate(zip(image.sizes[2:], kernel, stride, pads, out, strict=True)):
        start = torch.arange(count) * step - pad_[0]
        inside = torch.minimum(start + far, torch.tensor(size)) - start.clamp_min(0)
        counted = torch.minimum(start + far, torch.tensor(size + pad_[1])) - start if include else inside
        shape = [1, 1, -1, 1] if axis == 0 else [1, 1, 1, -1]
        ours = ours * (inside if name == SAME else torch.full_like(inside, far)).float().reshape(shape)
        theirs = theirs * counted.float().reshape(shape)
    factor = ours / (theirs if divisor is None else torch.full_like(theirs, divisor))
    return None if bool((factor == 1).all()) else factor


def adaptive_average(e: Emitter, x: Value, size: Sequence[int]) -> Any:
    rank, spatial = len(x.order), len(size)
    wanted = [own if s is None else s for own, s in zip(x.sizes[-spatial:], size, strict=True)]
    if all(s == 1 for s in wanted):
        return reduce(e, "MEAN", x, [*range(rank - spatial, rank)], keepdim=True)
    x = e.real(x)
    for dim, windows in zip(range(rank - spatial, rank), _windows(x.sizes[-spatial:], wanted), strict=True):
        matrix = torch.zeros(len(windows), x.sizes[dim])
        for row, (start, end) in enumerate(windows):
            matrix[row, start:end] = 1 / (end - start)
        x = mixed(e, x, dim, matrix)
    return x


def mixed(e: Emitter, x: Value, dim: int, matrix: Tensor) -> Value:
    """``x`` with a matrix [new, old] applied along ``dim``."""
    if matrix.shape[0] == matrix.shape[1] and bool((matrix == torch.eye(len(matrix))).all()):
        return x
    last = e.with_last(x, dim)
    weight = e.value(matrix)
    shape = (*last.shape[:-1], matrix.shape[0])
    return e.op("FULLY_CONNECTED", last, weight, None, shape=shape, order=last.order, keepNumDims=True)


def adaptive_max(e: Emitter, x: Value, size: Sequence[int]) -> list[Any]:
    if any(user.args[1] != 0 for user in e.node.users):
        raise e.fail("the positions of adaptive max pooling")
    rank, spatial = len(x.order), len(size)
    wanted = [own if s is None else s for own, s in zip(x.sizes[-spatial:], size, strict=True)]
    for dim, windows in zip(range(rank - spatial, rank), _windows(x.sizes[-spatial:], wanted), strict=True):
        longest = max(end - start for start, end in windows)
        places = torch.tensor([[min(start + step, end - 1) for step in range(longest)] for start, end in windows])
        sizes = (*x.sizes[:dim], len(windows), longest, *x.sizes[dim + 1 :])
        x = reduce(e, "REDUCE_MAX", e.reshape(take(e, x, dim, places.flatten()), sizes), dim + 1, keepdim=False)  # type: ignore[arg-type]
    return [x, None]


def _windows(sizes: Sequence[int], wanted: Sequence[int]) -> list[list[tuple[int, int]]]:
    """For each spatial dimension the windows (start, end) that PyTorch pools over."""
    return [
        [(place * own // count, -(-(place + 1) * own // count)) for place in range(count)]
        for own, count in zip(sizes, wanted, strict=True)
    ]


RULES: dict[Operator, Rule] = {
    aten.max_pool1d.default: max_pool, aten.max_pool2d.default: max_pool,
    aten.max_pool1d_with_indices.default: max_pool_with_indices,
    aten.max_pool2d_with_indices.default: max_pool_with_indices,
    aten.avg_pool1d.default: avg_pool, aten.avg_pool2d.default: avg_pool,
    aten.adaptive_avg_pool1d.default: adaptive_average, aten.adaptive_avg_pool2d.default: adaptive_average,
    aten._adaptive_avg_pool2d.default: adaptive_average, aten.adaptive_max_pool1d.default: adaptive_max,
    aten.adaptive_max_pool2d.default: adaptive_max,
}  # fmt: skip
