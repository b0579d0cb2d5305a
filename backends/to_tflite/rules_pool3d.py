"""Pooling in three dimensions: depth and the rest one after the other, each an image to TFLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_conv import VALID, each, pad
from planish.backends.to_tflite.rules_pool import adaptive_average, adaptive_max
from planish.backends.to_tflite.rules_shape import pad as pad_with
from planish.backends.to_tflite.values import Value, channels_last
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def pool(kind: str) -> Rule:
    def rule(e: Emitter, x: Value, kernel: Any, stride: Any = (), padding: Any = (0,), *rest: Any) -> Any:
        kernel, padding = each(kernel, 3), each(padding, 3)
        stride = each(stride or kernel, 3)
        if any(rest):
            raise e.fail("pooling in three dimensions with a dilation, or that rounds up, or counts otherwise")
        x = e.reshape(x, x.sizes if len(x.order) == 5 else (1, *x.sizes))  # type: ignore[assignment]
        x = _padded(e, kind, e.at(x, channels_last(5)), padding)
        batch, channels, depth, height, width = x.sizes
        images = e.reshape(e.permute(x, [0, 2, 1, 3, 4]), (batch * depth, channels, height, width))
        flat = _image(e, kind, images, kernel[1:], stride[1:])
        height, width = flat.sizes[2:]
        volume = e.permute(e.reshape(flat, (batch, depth, channels, height, width)), [0, 2, 1, 3, 4])
        columns = _image(
            e, kind, e.reshape(volume, (batch, channels, depth, height * width)), [kernel[0], 1], [stride[0], 1]
        )
        return e.reshape(columns, e.fake_result().shape)

    return rule


def _padded(e: Emitter, kind: str, x: Value, padding: Sequence[int]) -> Value:
    if not any(padding):
        return x
    if kind == "MAX_POOL_2D":
        return pad(e, x, [(0, 0), (0, 0), *((amount, amount) for amount in padding)], lowest=True)
    amounts = [amount for pair in reversed(padding) for amount in (pair, pair)]
    return pad_with(e, x, amounts)


def _image(e: Emitter, kind: str, x: Any, kernel: Sequence[int], stride: Sequence[int]) -> Value:
    image = e.at(x, channels_last(4))
    out = [(size - far) // step + 1 for size, far, step in zip(image.sizes[2:], kernel, stride, strict=True)]
    return e.move(
        kind, image, shape=(image.shape[0], *out, image.shape[3]), padding=VALID, strideH=stride[0],
        strideW=stride[1], filterHeight=kernel[0], filterWidth=kernel[1],
    )  # fmt: skip


def average(e: Emitter, x: Value, kernel: Any, stride: Any = (), padding: Any = (0,), *rest: Any) -> Any:
    """PyTorch's own defaults behind the padding are: round down, and count what was padded."""
    given = dict(zip(("ceil", "counts", "divisor"), rest, strict=False))
    if given.get("ceil") or given.get("divisor") or (not given.get("counts", True) and any(each(padding, 3))):
        raise e.fail("average pooling in three dimensions that rounds up, or divides otherwise")
    return pool("AVERAGE_POOL_2D")(e, x, kernel, stride, padding)


RULES: dict[Operator, Rule] = {
    aten.max_pool3d.default: lambda e, x, kernel, stride=(), padding=(0,), dilation=(1,), ceil=False: pool(
        "MAX_POOL_2D"
    )(e, x, kernel, stride, padding, any(step != 1 for step in each(dilation, 3)), ceil),
    aten.avg_pool3d.default: average, aten.adaptive_avg_pool3d.default: adaptive_average,
    aten._adaptive_avg_pool3d.default: adaptive_average, aten.adaptive_max_pool3d.default: adaptive_max,
}  # fmt: skip
