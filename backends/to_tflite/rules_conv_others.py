"""Transposed convolutions and those in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_tflite.activations import code
from planish.backends.to_tflite.emitter import Emitter, Rule
from planish.backends.to_tflite.rules_conv import SAME, VALID, bias_of, convolution, each, pad, shape_of
from planish.backends.to_tflite.rules_shape import cut_out
from planish.backends.to_tflite.values import Quantization, Value, arranged, channels_last
from planish.compiler.scheme import Operator

aten = torch.ops.aten
_STRIDES = ("strideD", "strideH", "strideW")


def transposed(
    e: Emitter, x: Value, weight: Any, bias: Any = None, stride: Any = (1,), padding: Any = (0,),
    output_padding: Any = (0,), groups: int = 1, dilation: Any = (1,),
) -> Any:  # fmt: skip
    """conv_transpose1d, 2d and 3d. Where SAME does not cut off what PyTorch does, it is cut off behind the operator."""
    kernel, own = _constant(weight)
    if kernel is None or isinstance(bias, Value):
        raise e.fail("a transposed convolution whose weights are computed")
    spatial = kernel.ndim - 2
    stride, padding, dilation = (each(numbers, spatial) for numbers in (stride, padding, dilation))
    kernel, inner = _spread(kernel, dilation), [*e.fake_result().shape[2:]]
    if spatial == 1:
        x, kernel = e.reshape(x, (*x.sizes[:2], 1, x.sizes[2])), kernel.unsqueeze(2)  # type: ignore[assignment]
        stride, padding, inner = [1, *stride], [0, *padding], [1, *inner]
    x = e.at(x, channels_last(len(x.order)))
    same = _same(x.sizes[2:], inner, kernel.shape[2:], stride, padding)
    cut = [0] * len(inner) if same else padding
    whole = [size + amount for size, amount in zip(inner, cut, strict=True)]
    options = {"padding": SAME if same else VALID, **dict(zip(_STRIDES[-len(stride) :], stride, strict=True))}
    parts = [
        _transposed_group(e, part, _kernel(e, share, own), shift, whole, options)
        for part, share, shift in zip(
            _channel_groups(e, x, groups), kernel.chunk(groups), _bias_groups(bias, groups), strict=True
        )
    ]
    y = parts[0]
    if groups > 1:
        shape = (*y.shape[:-1], sum(part.shape[-1] for part in parts))
        y = e.move("CONCATENATION", *parts, shape=shape, axis=len(shape) - 1)
    if any(cut):
        shape = (y.shape[0], *inner, y.shape[-1])
        y = e.move("SLICE", y, e.numbers([0, *cut, 0]), e.numbers(shape), shape=shape)
    return e.reshape(y, e.fake_result().shape)


def _same(
    sizes: Sequence[int], inner: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> bool:
    """Whether SAME cuts off at the start what PyTorch's padding does: the smaller half of what is too much."""
    return all(
        -(-size // step) == own and max((own - 1) * step + far - size, 0) // 2 == cut
        for own, size, far, step, cut in zip(sizes, inner, kernel, stride, padding, strict=True)
    )


def _constant(weight: Any) -> tuple[Tensor | None, Quantization | None]:
    """A constant weight as it lies in the Program, with the scales of a quantized one."""
    if isinstance(weight, Tensor):
        return weight, None
    return weight.stored.data and weight.stored.data(), weight.quantization


def _kernel(e: Emitter, weight: Tensor, own: Quantization | None) -> Value:
    """[in, out, ..., h, w] as TFLite has it: [out, h, w, in], in three dimensions [d, h, w, out, in]."""
    order = (1, 2, 3, 0) if weight.ndim == 4 else (2, 3, 4, 1, 0)
    if own is None:
        return e.constant(weight, e._name_of(weight), order)
    moved = Quantization(own.scales, own.zeros, order.index(own.axis))
    key = (e.node, weight.data_ptr(), "kernel")
    shape = arranged(weight.shape, order)
    made = e.made(key, shape, weight.dtype, lambda: weight.permute(order), quantization=moved)
    return Value(made.stored, order)


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
    e: Emitter, x: Value, kernel: Value, bias: Tensor | None, whole: Sequence[int], options: Mapping[str, Any]
) -> Value:
    filters = kernel.sizes[1]
    shape = (x.shape[0], *whole, filters)
    kernel = kernel if x.quantization is not None else e.real(kernel)
    if len(whole) == 3:
        y = e.op("CONV_3D_TRANSPOSE", e.numbers(shape), kernel, x, shape=shape, order=x.order, dtype=x.dtype, **options)
        return y if bias is None else e.op("ADD", y, e.value(bias), shape=shape, order=x.order)
    shift = None if bias is None else bias_of(e, bias, x, kernel, filters)
    return e.compute(
        "TRANSPOSE_CONV", e.numbers(shape), kernel, x, shift, shape=shape, order=x.order, dtype=torch.float32,
        **options,
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
