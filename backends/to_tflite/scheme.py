"""What TFLite executes in INT8, as data.

https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
"""

from __future__ import annotations

import torch

from planish.backends.to_tflite.devices import EDGE_TPU, MICRO, subset_of
from planish.compiler.hardware import HardwareProfile
from planish.compiler.scheme import IntegerOp, IntegerType, QuantizationScheme

aten = torch.ops.aten

_ACTIVATIONS = (
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
)  # fmt: skip


def _from(scale: float, zero: int) -> IntegerType:
    """Activations of a range that is known."""
    return IntegerType(torch.int8, -128, 127, symmetric=False, fixed=(scale, zero))


_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input)
_CONSTANT = IntegerType(torch.int8, -127, 127, symmetric=True)
OPS = (
    IntegerOp(
        (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding),
        (0,),
        weight=1,
        fuses=_ACTIVATIONS,
    ),
    IntegerOp(_TRANSPOSED, (0,), weight=1, weight_axis=1, fuses=_ACTIVATIONS),
    IntegerOp((aten.linear.default,), (0,), weight=1, fuses=_ACTIVATIONS),
    IntegerOp((aten.add.Tensor,), (0, 1), fuses=_ACTIVATIONS, beside=_CONSTANT),
    IntegerOp((aten.mul.Tensor, aten.sub.Tensor), (0, 1), beside=_CONSTANT),
    IntegerOp((aten.hardswish.default, aten.leaky_relu.default, aten.gelu.default, aten.silu.default), (0,)),
    IntegerOp((aten.sigmoid.default,), (0,), result_type=_from(1 / 256, -128)),
    IntegerOp((aten.hardsigmoid.default,), (0,), result_type=_from(1 / 255, -128)),
    IntegerOp((aten.tanh.default,), (0,), result_type=_from(1 / 128, 0)),
    IntegerOp((aten.cat.default,), (0,)),
    IntegerOp((aten.mean.dim, aten.adaptive_avg_pool2d.default), (0,), any_dims=True),
)
TRANSFORMERS = (
    IntegerOp((aten.softmax.int,), (0,), result_type=_from(1 / 256, -128)),
    IntegerOp((aten.matmul.default,), (0, 1)),
    IntegerOp((aten.rsqrt.default,), (0,)),
)
"""In integers only where floats are not to be had: attention, layer norm, the last softmax."""
IN_PARTS = (aten.scaled_dot_product_attention.default, aten.layer_norm.default)
TRANSPARENT = (
    aten.max_pool2d.default, aten.avg_pool2d.default, aten.reshape.default, aten.flatten.using_ints,
    aten.permute.default, aten.transpose.int, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.slice.Tensor, aten.pad.default, aten.constant_pad_nd.default, aten.pixel_shuffle.default,
    aten.select.int, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int,
)  # fmt: skip

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding)
STORED = (
    IntegerOp((*_CONVOLUTIONS, aten.linear.default), (0,), weight=1),
    IntegerOp(_TRANSPOSED, (0,), weight=1, weight_axis=1),
    IntegerOp((aten.embedding.default,), (), weight=0),
    IntegerOp((aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), (0,), weight=2),
)
"""Weights that lie there in INT8 for operators that compute in float: DEQUANTIZE stands between, which runs once."""
_ROWS = IntegerType(torch.int8, -128, 127, symmetric=False, granularity="row")
AT_RUN_TIME = (
    IntegerOp((aten.linear.default,), (0,), weight=1, activation_types=(_ROWS,)),
    IntegerOp(_CONVOLUTIONS, (0,), weight=1, grouped=False),  # XNNPACK has no such depthwise kernels
)
"""https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/post_training_quant (dynamic range)"""


def scheme_for(profile: HardwareProfile) -> QuantizationScheme | None:
    """The scheme of the format: int8 affine activations, int8 symmetric weights; None where the device has no INT8."""
    if profile.quantization is None:
        return None
    limits = subset_of(profile)
    only_integers = limits in (EDGE_TPU, MICRO)
    half = 2 ** (profile.quantization.weight_bits - 1) - 1
    return QuantizationScheme(
        activation=IntegerType(torch.int8, -128, 127, symmetric=False),
        weight=IntegerType(torch.int8, -half, half, symmetric=True, granularity="channel"),
        ops=(*OPS, *TRANSFORMERS) if only_integers else OPS,
        transparent=TRANSPARENT,
        min_channels=profile.quantization.min_channels or 1,
        in_parts=IN_PARTS if only_integers else (),
        stored=STORED if limits is None else (),
        at_run_time=AT_RUN_TIME if limits is None else (),
    )
