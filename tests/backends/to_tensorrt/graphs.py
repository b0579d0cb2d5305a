"""Small ONNX graphs around Q/DQ, built node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import ShapeInferencePass


class Graph:
    """Each method adds to the graph and returns the name of its result; a node is named like its result."""

    def __init__(self, opset: int = 19) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []

    def input(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def constant(self, data: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(data), name))
        return name

    def floats(self, *shape: int) -> str:
        return self.constant(np.random.default_rng(len(self.constants)).standard_normal(shape).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def quantized(
        self,
        x: str,
        scale: float | Sequence[float] = 0.05,
        zero: int = 0,
        axis: int | None = None,
        dtype: Any = np.int8,
    ) -> str:
        """Q, then DQ."""
        return self.dequantize(self.quantize(x, scale, zero, axis, dtype), scale, zero, axis, dtype)

    def quantize(self, x: str, scale: Any = 0.05, zero: int = 0, axis: int | None = None, dtype: Any = np.int8) -> str:
        return self._qdq("QuantizeLinear", x, scale, zero, axis, dtype)

    def dequantize(
        self, x: str, scale: Any = 0.05, zero: int = 0, axis: int | None = None, dtype: Any = np.int8
    ) -> str:
        return self._qdq("DequantizeLinear", x, scale, zero, axis, dtype)

    def _qdq(self, kind: str, x: str, scale: Any, zero: int, axis: int | None, dtype: Any) -> str:
        scales = scale if isinstance(scale, np.ndarray) else np.asarray(scale, np.float32)
        attributes = {} if axis is None else {"axis": axis}
        return self.op(kind, x, self.constant(scales), self.constant(np.full(scales.shape, zero, dtype)), **attributes)

    def weight(self, *shape: int, axis: int | None = 0, zero: int = 0) -> str:
        """INT8 constants, then DQ with a scale per index of ``axis`` (None: one scale)."""
        integers = np.random.default_rng(len(self.constants)).integers(-127, 128, shape).astype(np.int8)
        scale = 0.01 if axis is None else [0.01 + 0.001 * index for index in range(shape[axis])]
        return self.dequantize(self.constant(integers), scale, zero, axis)

    def proto(self, *outputs: str) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, values, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)

    def model(self, *outputs: str) -> ir.Model:
        """With the shapes that ONNX infers, as files are read."""
        model = ir.from_proto(self.proto(*outputs))
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
        return model


Case = Callable[[Graph], str]
IMAGE = (1, 32, 8, 8)


def conv(g: Graph, x: str, w: str, **attributes: object) -> str:
    return g.op("Conv", x, w, **attributes)


def image(g: Graph, scale: float = 0.05) -> str:
    return g.quantized(g.input(*IMAGE), scale)
