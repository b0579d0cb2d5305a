"""What TensorRT executes in INT8, as data. NVIDIA's own builder confirms each row: tests/backends/to_tensorrt."""

from __future__ import annotations

from typing import Literal

import torch

from planish.compiler.hardware import HardwareProfile
from planish.compiler.scheme import IntegerOp, IntegerType, QuantizationScheme

aten = torch.ops.aten

# Every input of a convolution or matrix product is quantized, never its output: TensorRT fuses what follows and
# rounds once, where the next layer reads.
# https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
OPS = (
    IntegerOp(
        (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding),
        (0,),
        weight=1,
        quantizes_output=False,
        # https://docs.nvidia.com/deeplearning/tensorrt/tensorflow-quantization-toolkit/docs/docs/add_custom_qdq_cases.html
        absorbs_sums=(aten.add.Tensor,),
    ),
    IntegerOp((aten.linear.default,), (0,), weight=1, quantizes_output=False),
    IntegerOp((aten.mm.default,), (0,), weight=1, weight_axis=1, quantizes_output=False),
    IntegerOp((aten.addmm.default,), (1,), weight=2, weight_axis=1, quantizes_output=False),
)


def scheme_for(profile: HardwareProfile) -> QuantizationScheme | None:
    """Symmetric INT8, the weights per output channel; None where the profile names no INT8."""
    limits = profile.quantization
    if limits is None:
        return None
    granularity: Literal["channel", "tensor"] = "channel" if limits.weight_granularity == "channel" else "tensor"
    return QuantizationScheme(
        activation=IntegerType(torch.int8, -128, 127, symmetric=True),
        weight=IntegerType(torch.int8, -127, 127, symmetric=True, granularity=granularity),
        ops=OPS,
        min_channels=limits.min_channels or 1,
    )
