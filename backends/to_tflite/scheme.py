"""What TFLite executes in INT8, as data.

https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

import torch

from planish.compiler.hardware import HardwareProfile
from planish.compiler.scheme import IntegerOp, IntegerType, QuantizationScheme

aten = torch.ops.aten

_ACTIVATIONS = (
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
)  # fmt: skip

OPS = (
    IntegerOp(
        (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding),
        (0,),
        weight=1,
        fuses=_ACTIVATIONS,
    ),
    IntegerOp((aten.linear.default,), (0,), weight=1, fuses=_ACTIVATIONS),
    IntegerOp((aten.add.Tensor,), (0, 1), fuses=_ACTIVATIONS),
    IntegerOp((aten.mul.Tensor, aten.sub.Tensor), (0, 1)),
    IntegerOp(
        (aten.hardswish.default, aten.leaky_relu.default, aten.gelu.default, aten.sigmoid.default, aten.tanh.default),
        (0,),
    ),
    IntegerOp((aten.cat.default,), (0,)),
    IntegerOp((aten.mean.dim, aten.adaptive_avg_pool2d.default), (0,)),
)
TRANSPARENT = (
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.reshape.default, aten.flatten.using_ints,
    aten.permute.default, aten.transpose.int, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.slice.Tensor, aten.pad.default, aten.constant_pad_nd.default, aten.pixel_shuffle.default,
)  # fmt: skip


def scheme_for(profile: HardwareProfile) -> QuantizationScheme | None:
    """The scheme of the format: int8 affine activations, int8 symmetric weights; None where the device has no INT8."""
    if profile.quantization is None:
        return None
    half = 2 ** (profile.quantization.weight_bits - 1) - 1
    return QuantizationScheme(
        activation=IntegerType(torch.int8, -128, 127, symmetric=False),
        weight=IntegerType(torch.int8, -half, half, symmetric=True, granularity="channel"),
        ops=OPS,
        transparent=TRANSPARENT,
        min_channels=profile.quantization.min_channels or 1,
    )
