"""Convolutions: channels last, and a padding of its own where TFLite's SAME is another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from planish.backends.to_tflite.activations import code
from planish.backends.to_tflite.emitter import Emitter
from planish.backends.to_tflite.integers import computes_at_run_time
from planish.backends.to_tflite.values import Quantization, Value, channels_last
from planish.compiler.scheme import Operator

aten = torch.ops.aten
SAME, VALID = 0, 1
_PADDINGS = (aten.pad.default, aten.constant_pad_nd.default)
Pads = list[tuple[int, int]]


def convolution(
    e: Emitter, x: Value, weight: Any, bias: Any = None, stride: Sequence[int] = (1,), padding: Any = (0,),
    dilation: Sequence[int] = (1,), groups: int = 1,
) -> Value:  # fmt: skip
    """conv1d and conv2d, padding as numbers or by name. A one-dimensional one is an image of height 1."""
    sizes = shape_of(weight)
    spatial = len(sizes) - 2
    stride, dilation = each(stride, spatial), each(dilation, spatial)
    x, pads = _with_padding_ahead(e, x, _pads(padding, sizes[2:], stride, dilation))
    if spatial == 1:
        x, weight = _as_image(e, x), _as_image(e, weight)
        stride, dilation, pads = [1, *stride], [1, *dilation], [(0, 0), *pads]
    y = _convolution2d(e, x, weight, bias, stride, pads, dilation, groups)
    return y if spatial == 2 else e.reshape(y, (*y.sizes[:2], y.sizes[3]))  # type: ignore[return-value]


def shape_of(x: Any) -> tuple[int, ...]:
    return x.sizes if isinstance(x, Value) else tuple(x.shape)


def each(numbers: Any, spatial: int) -> list[int]:
    listed = [numbers] if isinstance(numbers, int) else [*numbers]
    return listed * spatial if len(listed) == 1 else listed


def _pads(padding: Any, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Pads:
    if padding == "valid":
        padding = 0
    if padding == "same":
        totals = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(pad, pad) for pad in each(padding, len(kernel))]


def _with_padding_ahead(e: Emitter, x: Value, pads: Pads) -> tuple[Value, Pads]:
    """The input of a zero padding that only this convolution reads, and that padding added to its own."""
    node = e.node.args[0]
    if not isinstance(node, fx.Node) or node.target not in _PADDINGS or len(node.users) > 1 or node.kwargs:
        return x, pads
    source, amounts, *rest = node.args
    value = e.values.get(source) if isinstance(source, fx.Node) else None
    zeros = all(given in ("constant", None, 0) for given in rest)
    if not zeros or not isinstance(value, Value) or not isinstance(amounts, (list, tuple)):
        return x, pads
    numbers = [amount for amount in amounts if isinstance(amount, int) and amount >= 0]
    if len(numbers) < len(amounts) or len(amounts) > 2 * len(pads):
        return x, pads
    more = [(0, 0)] * (len(pads) - len(numbers) // 2) + [*zip(numbers[::2], numbers[1::2], strict=True)][::-1]
    whole = [(own[0] + new[0], own[1] + new[1]) for own, new in zip(pads, more, strict=True)]
    return value if x.quantization is not None else e.real(value), whole


def _as_image(e: Emitter, x: Any) -> Any:
    sizes = shape_of(x)
    if isinstance(x, Value) and x.stored.data is not None:  # quantized weights: a constant stays one
        data, made = x.stored.data, (*sizes[:2], 1, sizes[2])
        return e.made((x.stored, made), made, x.dtype, lambda: data().reshape(made), quantization=x.quantization)
    return e.reshape(x, (*sizes[:2], 1, *sizes[2:]))


def _convolution2d(
    e: Emitter, x: Value, weight: Any, bias: Any, stride: list[int], pads: Pads, dilation: list[int], groups: int
) -> Value:
    channels, filters = x.sizes[1], shape_of(weight)[0]
    x = e.at(x, channels_last(4))
    kernel = shape_of(weight)[2:]
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    out = [
        (size + sum(pad) - far) // step + 1
        for size, pad, far, step in zip(x.sizes[2:], pads, reach, stride, strict=True)
    ]
    x, name = padded(e, x, pads, reach, stride, out)
    common = {
        "padding": name, "strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0],
        "dilationWFactor": dilation[1], "fusedActivationFunction": code(e.activation),
    }  # fmt: skip
    depthwise = groups == channels and groups > 1
    stored = _weight(e, weight, (1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    stored = stored if x.quantization is not None or computes_at_run_time(e.node) else e.real(stored)
    operands = x, stored, bias_of(e, bias, x, stored, filters)
    shape = (x.shape[0], *out, filters)
    if depthwise:
        return e.compute("DEPTHWISE_CONV_2D", *operands, shape=shape, depthMultiplier=filters // channels, **common)
    return e.compute("CONV_2D", *operands, shape=shape, **common)


def _weight(e: Emitter, weight: Any, order: tuple[int, ...]) -> Value:
    """[out, in, h, w] as TFLite has it: [out, h, w, in], depthwise [1, h, w, out]."""
    if isinstance(weight, Tensor):
        return e.constant(weight, e._name_of(weight), order)
    if weight.stored.data is None:
        raise e.fail("a convolution whose weights are computed: TFLite needs constants for fast kernels")
    data = weight.stored.data
    shape = tuple(weight.shape[dim] for dim in order)
    own = weight.quantization
    moved = own and Quantization(own.scales, own.zeros, order.index(own.axis))
    made = e.made((weight.stored, order), shape, weight.dtype, lambda: data().permute(order), quantization=moved)
    return Value(made.stored, order)


def padded(
    e: Emitter, x: Value, pads: Pads, reach: Sequence[int], stride: Sequence[int], out: Sequence[int],
    lowest: bool = False,
) -> tuple[Value, int]:  # fmt: skip
    """``x`` (channels last) and SAME or VALID, so that windows lie where PyTorch has them.

    SAME pads by what the windows need, the smaller half ahead. Anything else is a PAD in front, of no more than the
    windows read. ``lowest`` pads with the lowest number instead of zeros (max pooling).
    """
    sizes = x.sizes[2:]
    needed = [
        (before, max((count - 1) * step + far - size - before, 0))
        for (before, _), count, step, far, size in zip(pads, out, stride, reach, sizes, strict=True)
    ]
    if all(pad == (0, 0) for pad in needed):
        return x, VALID
    same = all(
        count == math.ceil(size / step) and before == (before + after) // 2
        and before + after == max((count - 1) * step + far - size, 0)
        for (before, after), count, step, far, size in zip(needed, out, stride, reach, sizes, strict=True)
    )  # fmt: skip
    return (x, SAME) if same else (pad(e, x, [(0, 0), (0, 0), *needed], lowest), VALID)


def pad(e: Emitter, x: Value, amounts: Pads, lowest: bool = False) -> Value:
    """``amounts`` before and behind each dimension of the Program."""
    ordered = [amounts[dim] for dim in x.order]
    shape = tuple(size + sum(amount) for size, amount in zip(x.shape, ordered, strict=True))
    if not lowest:
        return e.move("PAD", x, e.numbers(ordered), shape=shape)
    if x.quantization is not None:
        key = ("lowest", x.quantization)
        low = e.made(key, (), torch.int8, lambda: torch.tensor(-128, dtype=torch.int8), quantization=x.quantization)
    else:
        low = e.numbers(torch.finfo(torch.float32).min, torch.float32)
    return e.move("PADV2", x, e.numbers(ordered), low, shape=shape)


def bias_of(e: Emitter, bias: Any, x: Value, weight: Value, filters: int) -> Value | None:
    """The bias; of a quantized layer INT32 with the product of the scales of input and weight.

    https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
    """
    if isinstance(bias, Value):
        raise e.fail("a bias that is computed")
    if x.quantization is None or weight.quantization is None:
        return e.value(bias if bias is not None else _zeros(e, filters))
    (scale,) = x.quantization.scales
    scales = tuple(scale * own for own in weight.quantization.scales)
    made = Quantization(scales, (0,) * len(scales))

    def integers() -> Tensor:
        real = torch.zeros(filters) if bias is None else bias.detach().double()
        limits = torch.iinfo(torch.int32)
        return torch.round(real / torch.tensor(scales, dtype=torch.float64)).clamp(limits.min, limits.max).int()

    return e.made((e.node, weight.stored, "bias"), (filters,), torch.int32, integers, quantization=made)


def _zeros(e: Emitter, filters: int) -> Tensor:
    return e.zeros.setdefault(filters, torch.zeros(filters))


RULES: dict[Operator, Any] = {
    aten.conv1d.default: convolution, aten.conv2d.default: convolution, aten.conv1d.padding: convolution,
    aten.conv2d.padding: convolution,
}  # fmt: skip
