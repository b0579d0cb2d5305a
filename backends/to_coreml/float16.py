"""coremltools' pass that casts a program to float16, without the index arrays that it makes of every weight.

The pass looks for constants beyond float16 with ``np.where`` on each: five integers of 64 bits for every value of a
convolution's kernel. For ResNet-50 that is a second and 100 MiB. The decision is the same here, by reductions alone.
https://github.com/apple/coremltools/blob/main/coremltools/converters/mil/mil/passes/defs/quantization.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

THEIRS, OURS = "common::add_fp16_cast", "planish::add_fp16_cast"
_LARGEST, _INFINITE = 65504.0, 1e38
"""What float16 holds; and what coremltools takes for an infinity, which float16 has as well."""


def with_own_cast(passes: list[str]) -> list[str]:
    """``passes`` of a pipeline with planish's form of the cast, registered at first use."""
    _register()
    return [OURS if each == THEIRS else each for each in passes]


def _register() -> None:
    from coremltools.converters.mil.mil.passes.defs.quantization import add_fp16_cast
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY, register_pass

    if OURS in PASS_REGISTRY:
        return
    methods = {"fp16_overflow": staticmethod(overflows)}
    register_pass(namespace="planish", name="add_fp16_cast")(type("add_fp16_cast", (add_fp16_cast,), methods))


def overflows(operation: Any) -> bool:
    """Whether a float32 constant that ``operation`` reads is beyond float16: the operation stays in float32 then."""
    return any(beyond_float16(values) for values in _constants(operation))


def _constants(operation: Any) -> Iterator[NDArray[np.float32]]:
    for given in operation.inputs.values():
        for var in given if isinstance(given, (list, tuple)) else [given]:
            if var.op is not None and var.op.op_type == "const" and var.is_tensor_or_scalar_of(dtype="fp32"):
                yield np.asarray(var.val)


def beyond_float16(values: NDArray[np.float32]) -> bool:
    """Whether a value is too large for float16 and none of coremltools' infinities; NaN is neither."""
    high = np.fmax.reduce(values, axis=None, initial=0.0)
    low = np.fmin.reduce(values, axis=None, initial=0.0)
    if high <= _LARGEST and low >= -_LARGEST:
        return False
    size = np.abs(values)
    return bool(((size > _LARGEST) & (size < _INFINITE)).any())
