"""What ONNX Runtime executes in INT8 on CPUs, as data. Figures: docs/backend-onnx.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from planish.compiler.hardware import HardwareProfile, Quantization
from planish.compiler.scheme import FloatPrefix, IntegerOp, IntegerType, QuantizationScheme

aten = torch.ops.aten

# A clip or relu behind an integer op vanishes into the range of its quantized result.
_ACTIVATIONS = (
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
)  # fmt: skip
_DTYPES = {"uint8": torch.uint8, "int8": torch.int8, "uint16": torch.uint16}

OPS = (
    IntegerOp(
        (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding),
        (0,),
        weight=1,
        fuses=_ACTIVATIONS,
    ),
    # MatMulIntegerToFloat: reads integers, writes floats. Quantizing its result costs time and 2 to 15 dB.
    IntegerOp((aten.linear.default,), (0,), weight=1, quantizes_output=False),
    IntegerOp((aten.add.Tensor,), (0, 1), fuses=_ACTIVATIONS),
    IntegerOp((aten.cat.default,), (0,)),
    IntegerOp((aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default), (0,)),
)
_STORED = IntegerOp(
    (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding, aten.linear.default),
    (0,),
    weight=1,
    weight_type=IntegerType(torch.int8, -127, 127, symmetric=True, granularity="channel"),
)
"""Weights that are dequantized when the model is loaded, and computed with in float."""
TRANSPARENT = (
    aten.max_pool2d.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.slice.Tensor, aten.pad.default,
    aten.constant_pad_nd.default, aten.pixel_shuffle.default,
)  # fmt: skip
X86_PREFIX = FloatPrefix(
    reduction=32, channels=32, reason="ONNX Runtime computes convolutions of few products faster in float"
)


def scheme_for(profile: HardwareProfile) -> QuantizationScheme | None:
    """The scheme for the device's INT8 types; None where the profile names none."""
    limits = profile.quantization
    if limits is None:
        return None
    activation = _activation(limits)
    half = 2 ** (limits.weight_bits - 1)
    granularity: Literal["channel", "tensor"] = "channel" if limits.weight_granularity == "channel" else "tensor"
    weight = IntegerType(torch.int8, -(half - 1), half - 1, symmetric=True, granularity=granularity)
    # Per channel, the rows of a gathered table would need their scales gathered as well.
    table = IntegerOp(
        (aten.embedding.default,),
        (),
        weight=0,
        quantizes_output=False,
        weight_type=replace(weight, granularity="tensor"),
    )
    on_x86 = profile.host is not None and profile.host.machine == "x86_64"
    return QuantizationScheme(
        activation=activation,
        weight=weight,
        ops=(*OPS, table),
        transparent=TRANSPARENT,
        prefix=X86_PREFIX if on_x86 else None,
        min_channels=limits.min_channels or 1,
        stored=(_STORED, table),
    )


def _activation(limits: Quantization) -> IntegerType:
    dtype = _DTYPES[limits.activation_dtype]
    whole = torch.iinfo(dtype)
    return IntegerType(dtype, whole.min, whole.max, symmetric=limits.activation_symmetric)
