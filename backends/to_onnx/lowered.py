"""A Program as the ONNX model that the execution providers of a device take."""

from __future__ import annotations

import onnx_ir as ir

from planish.backends.to_onnx.exporter import lower_any
from planish.backends.to_onnx.providers import providers_of
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program

OPSET = 20
"""Has Gelu; runtimes from 2024 on read it. A profile's ``runtime.opset`` lowers it."""
OPSET_OF_16_BITS = 21
"""QuantizeLinear to 16 bits begins there: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html"""


def opset_for(profile: HardwareProfile) -> int:
    limits = profile.quantization
    wanted = OPSET_OF_16_BITS if limits is not None and limits.activation_dtype == "uint16" else OPSET
    return min(wanted, profile.runtime.opset or wanted)


def lowered_for(program: Program, profile: HardwareProfile) -> tuple[ir.Model, str]:
    """The model, and a note on how it was lowered. Raises LoweringError."""
    model, note = lower_any(program, opset_for(profile))
    for provider in providers_of(profile):
        provider.suit(model, program)
    return model, note
