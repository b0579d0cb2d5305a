"""Transposed convolutions and those in three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.activations import code
from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_conv import VALID, bias_of, convolution, each, pad, shape_of
from planish.backends.to_tflite.rules_shape import cut_out
from planish.backends.to_tflite.values import Value, channels_last
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def transposed(
    e: Emitter, x: Value, weight: Any, bias: Any = None, stride: Any = (1,), padding: Any = (0,),
    output_padding: Any = (0,), groups: int = 1, dilation: Any = (1,),
) -> Any:  # fmt: skip
    """conv_transpose1d, 2d and 3d. TFLite pads nothing: what PyTorch cuts off at the start is cut off behind it."""
    if not isinstance(weight, Tensor) or isinstance(bias, Value):
        raise e.fail("a transposed convolution whose weights are computed")
    spatial = weight.ndim - 2
    stride, padding, dilation = (each(numbers, spatial) for numbers in (stride, padding, dilation))
    weight, inner = _spread(weight, dilation), [*e.fake_result().shape[2:]]
    if spatial == 1:
        x, weight = e.reshape(x, (*x.sizes[:2], 1, x.sizes[2])), weight.unsqueeze(2)  # type: ignore[assignment]
        stride, padding, inner = [1, *stride], [0, *padding], [1, *inner]
    x = e.at(x, channels_last(len(x.order)))
    whole = [size + cut for size, cut in zip(inner, padding, strict=True)]
    parts = [
        _transposed_group(e, part, kernel, own, stride, whole)
        for part, kernel, own in zip(
            _channel_groups(e, x, groups), weight.chunk(groups), _bias_groups(bias, groups), strict=True
        )
    ]
    y = parts[0]
    if groups > 1:
        shape = (*y.shape[:-1], sum(part.shape[-1] for part in parts))
        y = e.op("CONCATENATION", *parts, shape=shape, axis=len(shape) - 1)
    for dim, (cut, size) in enumerate(zip(padding, inner, strict=True), start=2):
        y = cut_out(e, y, dim, cut, size)
    return e.reshape(y, e.fake_result().shape)


def _spread(weight: Tensor, dilation: Sequence[int]) -> Tensor:
    """The kernel with its dilation as zeros: TRANSPOSE_CONV has none."""
    for dim, step in enumerate(dilation, start=2):
        if step > 1:
            size = weight.shape[dim]
            places = torch.arange(size) * step
            sizes = [*weight.shape]
            sizes[dim] = (size - 1) * step + 1
            weight = weight.new_zeros(sizes).index_copy(dim, places, weight)
    return weight


def _channel_groups(e: Emitter, x: Value, groups: int) -> list[Value]:
    width = x.sizes[1] // groups
    return [cut_out(e, x, 1, place * width, width) for place in range(groups)]


def _bias_groups(bias: Tensor | None, groups: int) -> Sequence[Tensor | None]:
    return [None] * groups if bias is None else bias.chunk(groups)


def _transposed_group(
    e: Emitter, x: Value, weight: Tensor, bias: Tensor | None, stride: Sequence[int], whole: Sequence[int]
) -> Value:
    filters = weight.shape[1]
    shape = (x.shape[0], *whole, filters)
    if len(whole) == 3:
        kernel = e.constant(weight, e._name_of(weight), (2, 3, 4, 1, 0))
        y = e.op(
            "CONV_3D_TRANSPOSE", e.numbers(shape), kernel, x, shape=shape, order=x.order, dtype=x.dtype,
            padding=VALID, strideD=stride[0], strideH=stride[1], strideW=stride[2],
        )  # fmt: skip
        return y if bias is None else e.op("ADD", y, e.value(bias), shape=shape, order=x.order)
    kernel = e.constant(weight, e._name_of(weight), (1, 2, 3, 0))
    return e.op(
        "TRANSPOSE_CONV", e.numbers(shape), kernel, x, None if bias is None else e.value(bias), shape=shape,
        order=x.order, dtype=x.dtype, padding=VALID, strideH=stride[0], strideW=stride[1],
    )  # fmt: skip


def convolution3d(
    e: Emitter, x: Value, weight: Any, bias: Any = None, stride: Any = (1,), padding: Any = (0,),
    dilation: Any = (1,), groups: int = 1,
) -> Value:  # fmt: skip
    if groups != 1 or not isinstance(weight, Tensor) or isinstance(bias, Value):
        raise e.fail("a convolution in three dimensions in groups, or with computed weights")
    stride, dilation = each(stride, 3), each(dilation, 3)
    x = e.at(x, channels_last(5))
    pads = [(0, 0)] * 3 if padding == "valid" else None
    if padding == "same":
        totals = [(size - 1) * step for size, step in zip(weight.shape[2:], dilation, strict=True)]
        pads = [(total // 2, total - total // 2) for total in totals]
    pads = pads or [(amount, amount) for amount in each(padding, 3)]
    if any(pad_ != (0, 0) for pad_ in pads):
        x = pad(e, x, [(0, 0), (0, 0), *pads])
    filters = weight.shape[0]
    kernel = e.constant(weight, e._name_of(weight), (2, 3, 4, 1, 0))
    shape = (x.shape[0], *e.fake_result().shape[2:], filters)
    return e.op(
        "CONV_3D", x, kernel, bias_of(e, bias, x, kernel, filters), shape=shape, padding=VALID,
        fusedActivationFunction=code(e.activation), strideD=stride[0], strideH=stride[1], strideW=stride[2],
        dilationDFactor=dilation[0], dilationHFactor=dilation[1], dilationWFactor=dilation[2],
    )  # fmt: skip


def any_convolution(
    e: Emitter, x: Value, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, is_transposed: bool,
    output_padding: Any, groups: int,
) -> Any:  # fmt: skip
    """What PyTorch's decompositions make of all convolutions."""
    if is_transposed:
        return transposed(e, x, weight, bias, stride, padding, output_padding, groups, dilation)
    rule = convolution if len(shape_of(weight)) < 5 else convolution3d
    return rule(e, x, weight, bias, stride, padding, dilation, groups)


RULES: dict[Operator, Rule] = {
    aten.conv_transpose1d.default: transposed, aten.conv_transpose2d.input: transposed,
    aten.conv_transpose3d.input: transposed, aten.convolution.default: any_convolution,
    aten.conv3d.default: convolution3d, aten.conv3d.padding: convolution3d,
}  # fmt: skip
