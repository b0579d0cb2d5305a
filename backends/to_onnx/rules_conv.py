"""Convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Value
from planish.backends.to_onnx.rules_pad import onnx_pads
from planish.compiler.padding import zero_padding
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def conv(
    e: Emitter, x: Value, weight: Value, bias: Value | None = None, stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,), dilation: Sequence[int] = (1,), groups: int = 1,
) -> Value:  # fmt: skip
    spatial = e.fake(1).ndim - 2
    kernel = [*e.fake(1).shape[2:]]
    stride, dilation = each(stride, spatial), each(dilation, spatial)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        begins, ends = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        begins = ends = each(padding, spatial)
    x, outer = _absorb_padding(e, x, spatial)
    begins = [own + extra for own, extra in zip(begins, outer[:spatial], strict=True)]
    ends = [own + extra for own, extra in zip(ends, outer[spatial:], strict=True)]
    attributes = {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "group": groups}
    pads = [*begins, *ends]
    return batched(e, x, spatial, lambda value: e.op("Conv", value, weight, bias, pads=pads, **attributes))


def _absorb_padding(e: Emitter, x: Value, spatial: int) -> tuple[Value, list[int]]:
    """A zero padding in front goes into the convolution: ONNX pads unevenly, and INT8 kernels fuse that alone."""
    node: Any = e.node.args[0]
    rank, amounts = e.fake(0).ndim, zero_padding(node)
    pads = onnx_pads(amounts or [], rank)
    first = rank - spatial
    outer = [*pads[first:rank], *pads[rank + first :]]
    if amounts is None or sum(pads) > sum(outer):  # no padding, or one of the batch or the channels as well
        return x, [0] * len(outer)
    return e.values[node.args[0]], outer


def conv_transpose(
    e: Emitter, x: Value, weight: Value, bias: Value | None = None, stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,), output_padding: Sequence[int] = (0,), groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Value:  # fmt: skip
    spatial = e.fake(1).ndim - 2
    return batched(e, x, spatial, lambda value: e.op(
        "ConvTranspose", value, weight, bias, kernel_shape=[*e.fake(1).shape[2:]], strides=each(stride, spatial),
        pads=each(padding, spatial) * 2, output_padding=each(output_padding, spatial), group=groups,
        dilations=each(dilation, spatial),
    ))  # fmt: skip


def convolution(
    e: Emitter, x: Value, weight: Value, bias: Value | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Value:  # fmt: skip
    if transposed:
        return conv_transpose(e, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(e, x, weight, bias, stride, padding, dilation, groups)


def batched(e: Emitter, x: Value, spatial: int, apply: Callable[[Value], Value]) -> Value:
    """``apply`` to ``x`` with a batch of one where it has none: ONNX knows no unbatched layers."""
    if e.fake(0).ndim == spatial + 2:
        return apply(x)
    return e.op("Squeeze", apply(e.op("Unsqueeze", x, e.constant([0]))), e.constant([0]))


def each(values: Sequence[int] | int, count: int) -> list[int]:
    listed = [values] if isinstance(values, int) else [*values]
    return listed * count if len(listed) == 1 else listed


RULES: dict[Operator, Rule] = {
    aten.conv1d.default: conv, aten.conv2d.default: conv, aten.conv3d.default: conv,
    aten.conv1d.padding: conv, aten.conv2d.padding: conv, aten.conv3d.padding: conv,
    aten.conv_transpose1d.default: conv_transpose, aten.conv_transpose2d.input: conv_transpose,
    aten.conv_transpose3d.input: conv_transpose, aten.convolution.default: convolution,
}  # fmt: skip
