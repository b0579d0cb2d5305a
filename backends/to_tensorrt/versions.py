"""The versions of TensorRT that a profile names, and an ONNX model written so that the oldest of them reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.convenience import get_const_tensor, replace_nodes_and_values
from onnx_ir.passes.common import ShapeInferencePass

from planish.backends.to_tensorrt.edits import drop_unused, like, new_initializer
from planish.backends.to_tensorrt.integers import fused_projections
from planish.backends.to_tensorrt.operators import Version, reads
from planish.backends.to_tensorrt.thirds import in_three
from planish.compiler.hardware import HardwareProfile

OLDEST: Version = (8, 5)
"""For profiles that name no version."""


def oldest_version(profile: HardwareProfile) -> Version:
    """Major and minor of the oldest TensorRT that the profile allows."""
    bound = re.search(r"(?:>=|==|~=)(\d+)(?:\.(\d+))?", profile.runtime.versions.get("tensorrt", ""))
    return (int(bound[1]), int(bound[2] or 0)) if bound else OLDEST


def suit(model: ir.Model, version: Version) -> ir.Model:
    """``model`` in what ``version`` reads, changed in place.

    1. Layers that make queries, keys and values at once become three: fused with attention they would run in float.
    2. Layer normalization in single steps before 8.6.
    3. Weights before 10 are floats that the builder quantizes: INT8 constants are rejected.
    4. The IR version is the one that came with the opset.
    5. The shapes that follow from those of the inputs are in it: rules look at them.
    """
    for node in [*fused_projections(model.graph)]:
        in_three(model.graph, node)
    for node in [*model.graph]:
        if node.op_type == "LayerNormalization" and not reads(node.op_type, version):
            _in_single_steps(model.graph, node)
        elif node.op_type == "DequantizeLinear" and version < (10, 0):
            _with_float_weights(model.graph, node)
    opset = model.graph.opset_imports[""]
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model


def _in_single_steps(graph: ir.Graph, node: ir.Node) -> None:
    """The definition of https://onnx.ai/onnx/operators/onnx__LayerNormalization.html, for opset 17."""
    x, scale, *rest = node.inputs
    axis, epsilon = node.attributes["axis"].as_int(), node.attributes["epsilon"].as_float()
    made: list[ir.Node] = []

    def step(kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        made.append(like(node, kind, inputs, attributes, f"{node.name}.{kind}{len(made)}"))
        return made[-1].outputs[0]

    axes = [*range(axis, 0)]
    small = new_initializer(graph, ir.tensor(epsilon, dtype=ir.DataType.FLOAT, name=f"{node.name}.epsilon"))
    centred = step("Sub", x, step("ReduceMean", x, axes=axes, keepdims=1))
    variance = step("ReduceMean", step("Mul", centred, centred), axes=axes, keepdims=1)
    result = step("Mul", step("Div", centred, step("Sqrt", step("Add", variance, small))), scale)
    if rest and rest[0] is not None:
        step("Add", result, rest[0])
    replace_nodes_and_values(graph, node, [node], made, [node.outputs[0]], [made[-1].outputs[0]])


def _with_float_weights(graph: ir.Graph, node: ir.Node) -> None:
    """QuantizeLinear, of floats that it maps to the very integers that were there."""
    integers, scale = (get_const_tensor(value) for value in node.inputs[:2] if value is not None)
    if integers is None or scale is None:
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else None
    name = f"{node.name}.floats"
    floats = ir.LazyTensor(
        _product(integers, scale, axis), dtype=ir.DataType.FLOAT, shape=ir.Shape([*integers.shape]), name=name
    )
    value = new_initializer(graph, floats)
    attributes = {} if axis is None else {"axis": axis}
    quantize = like(node, "QuantizeLinear", (value, *node.inputs[1:]), attributes, f"{node.name}.quantize")
    graph.insert_before(node, quantize)
    unused = node.inputs[0]
    node.replace_input_with(0, quantize.outputs[0])
    drop_unused(graph, unused)


def _product(
    integers: ir.TensorProtocol, scale: ir.TensorProtocol, axis: int | None
) -> Callable[[], ir.TensorProtocol]:
    def make() -> ir.TensorProtocol:
        factors, values = scale.numpy(), integers.numpy()
        if factors.ndim:
            assert axis is not None
            factors = factors.reshape([-1 if place == axis % values.ndim else 1 for place in range(values.ndim)])
        return ir.tensor(values.astype(factors.dtype) * factors)

    return make
