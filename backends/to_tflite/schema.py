"""The TFLite schema by name: operators, their options and the versions that runtimes look them up with.

https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ai_edge_litert import schema_py_generated as fb

from planish.backends.to_tflite.values import Value

TYPES = {
    torch.float32: fb.TensorType.FLOAT32,
    torch.float16: fb.TensorType.FLOAT16,
    torch.int32: fb.TensorType.INT32,
    torch.int8: fb.TensorType.INT8,
    torch.bool: fb.TensorType.BOOL,
}
"""What a file of this backend holds."""

_OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2DOptions", "MAX_POOL_2D": "Pool2DOptions", "L2_NORMALIZATION": "L2NormOptions",
    "MEAN": "ReducerOptions", "SUM": "ReducerOptions", "REDUCE_MAX": "ReducerOptions", "REDUCE_MIN": "ReducerOptions",
    "REDUCE_PROD": "ReducerOptions", "REDUCE_ANY": "ReducerOptions", "REDUCE_ALL": "ReducerOptions",
    "CONV_3D_TRANSPOSE": "Conv3DOptions", "MAXIMUM": "MaximumMinimumOptions", "MINIMUM": "MaximumMinimumOptions",
}  # fmt: skip
_BY_LETTERS = {name.lower(): name for name in vars(fb.BuiltinOptions) if name.endswith("Options")}

# https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/tools/versioning/op_version.cc
_INTEGER_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 5, "HARD_SWISH": 1, "RESHAPE": 1}
_FLOAT_VERSIONS = {
    "BROADCAST_TO": 2,
    "FULLY_CONNECTED": 5,
    "RESIZE_BILINEAR": 3,
    "RESIZE_NEAREST_NEIGHBOR": 3,
    "TRANSPOSE_CONV": 3,
}
_HYBRID_VERSIONS = {"CONV_2D": 5, "FULLY_CONNECTED": 12}
"""Of those that read floats and integer weights with a scale for each channel. Older runtimes refuse them so; without
the version they take the scale of the first channel for all."""


def code(kind: str) -> int:
    """The number of the operator ``CONV_2D``, ``ADD`` …"""
    return int(getattr(fb.BuiltinOperator, kind))


def version(kind: str, operands: Sequence[Value | None]) -> int:
    """The version of an operator that reads ``operands``."""
    scales = [value.quantization.scales if value is not None and value.quantization else () for value in operands]
    per_channel = any(len(own) > 1 for own in scales)
    if kind in _HYBRID_VERSIONS and per_channel and not scales[0]:
        return _HYBRID_VERSIONS[kind]
    if kind == "DEQUANTIZE" and per_channel:
        return 5
    if kind == "DEQUANTIZE" and operands[0] is not None and operands[0].dtype is torch.float16:
        return 3
    floats = _FLOAT_VERSIONS.get(kind, 1)
    return max(floats, _INTEGER_VERSIONS.get(kind, 2)) if any(scales) else floats


def options(kind: str, fields: dict[str, Any]) -> tuple[int, Any]:
    """Type and table of the options of one operator; (0, None) for an operator that has none."""
    name = _OPTIONS.get(kind) or _BY_LETTERS.get(kind.replace("_", "").lower() + "options")
    if name is None:
        if fields:
            raise ValueError(f"{kind} has no options")
        return 0, None
    return getattr(fb.BuiltinOptions, name), getattr(fb, f"{name}T")(**fields)
