"""What ONNX Runtime's QNN execution provider takes: Qualcomm's NPUs run a node in integers where it is quantized whole.

A node is taken in integers if all its inputs are dequantized right in front of it and its result is quantized right
behind it. What is not, runs in FP16 on the NPU where it has that, else on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.convenience import get_const_tensor, replace_nodes_and_values

from planish.backends.to_onnx.graph_rules import Rule, nodes, origin
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program
from planish.compiler.scheme import IntegerOp, QuantizationScheme
from planish.compiler.shapes import ensure_shapes, tensor_of

DOCS = "https://onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html"
OPERATORS_PAGE = "https://github.com/onnxruntime/onnxruntime-qnn/blob/main/docs/execution_providers/QNN-ExecutionProvider.md#supported-onnx-operators"

OPERATORS = frozenset(
    {
        "Abs", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool", "BatchNormalization", "Cast", "Ceil",
        "Clip", "Concat", "Conv", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "DequantizeLinear", "Div",
        "Einsum", "Elu", "Equal", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu",
        "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization",
        "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsNaN", "LRN", "LSTM", "LayerNormalization",
        "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "MatMul", "Max", "MaxPool", "Mean",
        "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear",
        "RMSNormalization", "RandomNormalLike", "RandomUniformLike", "Reciprocal", "ReduceL2", "ReduceMax",
        "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Reshape", "Resize", "RoiAlign",
        "RotaryEmbedding", "Round", "STFT", "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin", "Slice",
        "Softmax", "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh",
        "ThresholdedRelu", "Tile", "TopK", "Transpose", "Unsqueeze", "Upsample", "Where",
    }
)  # fmt: skip
"""Of the table for version 2.3, those that it takes by themselves."""

RULES = (
    Rule("qnn-fixed-shapes", "Fix every size: the QNN execution provider takes no dynamic shapes.",
         lambda graph: _dynamic(graph), source=DOCS),
    Rule("qnn-operators", "The QNN execution provider does not take this operator: the CPU runs it.",
         lambda graph: (node for node in nodes(graph) if node.domain or node.op_type not in OPERATORS), "warning",
         OPERATORS_PAGE),
    Rule("qnn-positive-indices", "Gather with indices from 0 on: negative ones make the CPU run it.",
         lambda graph: _negative_gathers(graph), "warning", OPERATORS_PAGE),
    Rule("qnn-quantized-whole",
         "Quantize all inputs right in front of this layer, and its result right behind it: it runs in no integers "
         "otherwise.", lambda graph: half_quantized(graph), "warning", DOCS),
)  # fmt: skip

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _dynamic(graph: ir.Graph) -> Iterator[ir.Node]:
    """The first reader of each input of which a size is not a number."""
    for value in graph.inputs:
        if value.shape is None or any(not isinstance(size, int) for size in value.shape):
            yield from value.consumers()[:1]


def _negative_gathers(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        indices = get_const_tensor(node.inputs[1]) if node.op_type == "Gather" and node.inputs[1] else None
        if indices is not None and (indices.numpy() < 0).any():
            yield node


def half_quantized(graph: ir.Graph) -> Iterator[ir.Node]:
    """Layers with dequantized weights that are not quantized all around."""
    for node in nodes(graph):
        if node.op_type in _WEIGHTED and _dequantize(node.inputs[1]) is not None and not is_whole(node):
            yield node


def is_whole(node: ir.Node) -> bool:
    """Whether every input comes from a DequantizeLinear and every reader of the result is a QuantizeLinear.

    What may stand in between: a relu or a clip, and for a product the sum with its bias
    (https://github.com/onnxruntime/onnxruntime-qnn/releases/tag/v2.7.0).
    """
    if any(value is not None and _dequantize(value) is None for value in node.inputs):
        return False
    readers = node.outputs[0].consumers()
    if len(readers) == 1 and readers[0].op_type == "Add" and node.op_type == "MatMul":
        readers = readers[0].outputs[0].consumers()
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = readers[0].outputs[0].consumers()
    return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)


def _dequantize(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


# ---------------------------------------------------------------------- the scheme

aten = torch.ops.aten

_ELEMENTWISE = IntegerOp(
    (
        aten.relu.default, aten.relu6.default, aten.leaky_relu.default, aten.elu.default, aten.sigmoid.default,
        aten.tanh.default, aten.gelu.default, aten.hardswish.default, aten.hardsigmoid.default,
    ),
    (0,),
)  # fmt: skip
_PRODUCTS = IntegerOp((aten.mul.Tensor, aten.sub.Tensor), (0, 1))


def suit_scheme(scheme: QuantizationScheme, profile: HardwareProfile) -> QuantizationScheme:
    """ONNX Runtime's scheme for CPUs, with what the NPU wants otherwise.

    1. Results are quantized everywhere: a node is taken in integers only as a whole.
    2. Embeddings stay float: rows that are dequantized behind the gather are no whole node.
    3. Activations and products join, since the NPU has integers for them too.
    """
    kept = [replace(op, quantizes_output=True) for op in scheme.ops if aten.embedding.default not in op.operators]
    return replace(scheme, ops=(*kept, _ELEMENTWISE, _PRODUCTS), prefix=None)


# ---------------------------------------------------------------------- the graph


def suit(model: ir.Model, program: Program) -> ir.Model:
    """``model``, lowered from ``program``, in the forms that are taken whole, changed in place.

    1. MatMul and Sum of a quantized linear layer: Gemm in two dimensions, MatMul and Add in more.
    2. Float biases become INT32 behind a DequantizeLinear, with the scale of input times weight.
    """
    ensure_shapes(program)
    for node in [*model.graph]:
        if node.op_type == "Sum" and len(node.inputs) == 2:
            _use_gemm_or_add(model.graph, node, program)
    for node in [*model.graph]:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2:
            _quantize_bias(model.graph, node)
    return model


def _use_gemm_or_add(graph: ir.Graph, node: ir.Node, program: Program) -> None:
    product, bias = node.inputs
    layer = product.producer() if product is not None else None
    if layer is None or bias is None or layer.op_type != "MatMul" or _dequantize(layer.inputs[1]) is None:
        return
    made_of = origin(node.name, program)
    flat = made_of is not None and tensor_of(made_of).ndim == 2
    inputs = [*layer.inputs, bias] if flat else [product, bias]
    made = ir.Node("", "Gemm" if flat else "Add", inputs, name=node.name, metadata_props=dict(node.metadata_props))
    replace_nodes_and_values(graph, node, [node], [made], [node.outputs[0]], [made.outputs[0]])
    if flat:
        made.name = layer.name
        graph.remove(layer, safe=True)


def _quantize_bias(graph: ir.Graph, node: ir.Node) -> None:
    bias = get_const_tensor(node.inputs[2]) if node.inputs[2] is not None else None
    scales = [_scale(node.inputs[place]) for place in (0, 1)]
    if bias is None or scales[0] is None or scales[1] is None:
        return
    scale = np.float32(scales[0]) * np.asarray(scales[1], np.float32)
    whole = np.clip(np.rint(bias.numpy() / scale), -(2**31), 2**31 - 1).astype(np.int32)
    values = [
        _initializer(graph, array, f"{node.name}.bias.{part}")
        for part, array in (("integers", whole), ("scale", scale), ("zero", np.zeros(scale.shape, np.int32)))
    ]
    attributes = [ir.AttrInt64("axis", 0)] if scale.ndim else []
    dequantize = ir.Node("", "DequantizeLinear", values, attributes, name=f"{node.name}.bias")
    graph.insert_before(node, dequantize)
    old = node.inputs[2]
    node.replace_input_with(2, dequantize.outputs[0])
    if old is not None and not old.uses() and old.name is not None:
        graph.initializers.pop(old.name, None)


def _scale(value: ir.Value | None) -> np.ndarray | None:
    dequantize = _dequantize(value)
    tensor = get_const_tensor(dequantize.inputs[1]) if dequantize is not None and dequantize.inputs[1] else None
    return None if tensor is None else tensor.numpy()


def _initializer(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
