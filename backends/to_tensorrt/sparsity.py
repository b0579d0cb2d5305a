"""Whether weights have the 2:4 pattern that sparse tensor cores skip."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from planish.backends.to_tensorrt.dequantized import constant_of
from planish.backends.to_tensorrt.integers import LAYERS


def has_two_four_weights(model: ir.Model) -> bool:
    """Whether the weight of some layer has two zeros in every four along its input channels."""
    return any(_two_four(node) for node in model.graph if node.op_type in LAYERS)


def _two_four(node: ir.Node) -> bool:
    value = node.inputs[1]
    maker = value.producer() if value is not None else None
    while maker is not None and maker.op_type in ("DequantizeLinear", "QuantizeLinear", "Transpose"):
        value = maker.inputs[0]
        maker = value.producer() if value is not None else None
    weight = constant_of(value)
    if weight is None or weight.ndim < 2:
        return False
    columns = 1 if weight.ndim > 2 or (node.op_type == "Gemm" and node.attributes.get("transB")) else 0
    rows = np.moveaxis(weight, columns, -1)
    if rows.shape[-1] % 4:
        return False
    return bool(((rows.reshape(-1, 4) == 0).sum(1) >= 2).all())
