"""What each MIL operation computes, one function each: its documentation, written with torch.

https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html
"""

from __future__ import annotations

from planish.backends.to_coreml import (
    mil_elementwise,
    mil_index,
    mil_neural,
    mil_recurrent,
    mil_reduce,
    mil_resize,
    mil_shape,
    mil_weights,
)
from planish.backends.to_coreml.mil_values import Function, Unevaluated

VARIADIC = frozenset({"values", "ref_tensors", "begins", "ends", "end_masks", "loop_vars", "classes"})
"""Parameters that are lists, be it of one value."""

OPERATIONS: dict[str, Function] = {
    **mil_elementwise.OPERATIONS,
    **mil_index.OPERATIONS,
    **mil_neural.OPERATIONS,
    **mil_recurrent.OPERATIONS,
    **mil_reduce.OPERATIONS,
    **mil_resize.OPERATIONS,
    **mil_shape.OPERATIONS,
    **mil_weights.OPERATIONS,
}

__all__ = ["OPERATIONS", "VARIADIC", "Unevaluated"]
