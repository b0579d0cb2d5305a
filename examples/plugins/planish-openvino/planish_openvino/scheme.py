"""What OpenVINO executes in INT8 on x86 CPUs, as its difference from ONNX Runtime. Figures: README.md."""

from __future__ import annotations

from dataclasses import replace

import torch

from planish.compiler.scheme import IntegerOp, QuantizationScheme

aten = torch.ops.aten

FUSED = (
    aten.silu.default, aten.hardswish.default, aten.gelu.default, aten.leaky_relu.default, aten.elu.default,
    aten.sigmoid.default, aten.tanh.default,
)  # fmt: skip
"""What a convolution computes on its sums before it writes integers, beside relu and clips. Not hardsigmoid."""


def on_x86(scheme: QuantizationScheme) -> QuantizationScheme:
    """``scheme``, which is ONNX Runtime's, with what OpenVINO does otherwise: it fuses more, and starts in INT8."""
    return replace(scheme, ops=tuple(map(_with_fused, scheme.ops)), prefix=None)


def _with_fused(op: IntegerOp) -> IntegerOp:
    writes_integers = op.weight is not None and op.quantizes_output
    return replace(op, fuses=tuple(dict.fromkeys((*op.fuses, *FUSED)))) if writes_integers else op
