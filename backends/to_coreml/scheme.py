"""What Core ML runs in INT8, as data; and what weights alone may be stored as.

8-bit activations need iOS 17 or macOS 14; the Neural Engine computes with them from A17 Pro and M4 on.
https://apple.github.io/coremltools/docs-guides/source/opt-overview.html
"""

from __future__ import annotations

from typing import Literal

import torch

from planish.backends.to_coreml.targets import ios_version
from planish.compiler.hardware import HardwareProfile
from planish.compiler.scheme import IntegerOp, IntegerType, QuantizationScheme

aten = torch.ops.aten
ACTIVATIONS_SINCE = 17
_FUSED = (aten.relu.default, aten.relu6.default, aten.hardtanh.default)
OPS = (
    IntegerOp(
        (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding),
        (0,),
        weight=1,
        fuses=_FUSED,
    ),
    IntegerOp((aten.linear.default,), (0,), weight=1, quantizes_output=False),
    IntegerOp((aten.add.Tensor,), (0, 1), fuses=_FUSED),
)
TRANSPARENT = (
    aten.max_pool2d.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
)  # fmt: skip
STORED = (
    IntegerOp(
        (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding, aten.linear.default),
        (0,),
        weight=1,
    ),
    IntegerOp((aten.embedding.default,), (), weight=0),
)
"""Weights that alone may be integers: constexpr operators dequantize them."""
RANGES = ((-128, 127), (0, 255))
"""Of activations: coremltools 9 drops quant_min and quant_max, so that any other would saturate elsewhere."""


def scheme_for(profile: HardwareProfile) -> QuantizationScheme | None:
    """INT8 over its whole range, weights per output channel; None where the profile or its system runs none."""
    limits = profile.quantization
    if limits is None or ios_version(profile) < ACTIVATIONS_SINCE:
        return None
    granularity: Literal["channel", "tensor"] = "channel" if limits.weight_granularity == "channel" else "tensor"
    signed = limits.activation_dtype == "int8"
    low, high = RANGES[0] if signed else RANGES[1]
    return QuantizationScheme(
        activation=IntegerType(torch.int8 if signed else torch.uint8, low, high, limits.activation_symmetric),
        weight=IntegerType(torch.int8, -127, 127, symmetric=True, granularity=granularity),
        ops=OPS,
        transparent=TRANSPARENT,
        min_channels=limits.min_channels or 1,
        stored=STORED,
    )
