"""What NVIDIA's deep learning accelerator (DLA) runs of a graph; the GPU runs the rest, without a word.

Rules for profiles whose units are all of the kind ``dla``.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from planish.backends.to_onnx.graph_rules import Rule, nodes
from planish.backends.to_tensorrt.dequantized import constant_of
from planish.compiler.hardware import HardwareProfile

LAYERS = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/dla-layer-restrictions.html"
OPERATORS_PAGE = "https://github.com/NVIDIA/Deep-Learning-Accelerator-SW/blob/main/operators/README.md"
EXPLICIT = "https://developer.nvidia.com/zh-cn/blog/tensorrt-deep-learning-accelerator-cn"

OPERATORS = frozenset(
    {
        "Abs", "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
        "ConvTranspose", "Cos", "Equal", "Gemm", "Identity", "LRN", "LeakyRelu", "MatMul", "Max", "MaxPool", "Mul",
        "PRelu", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Slice", "Softmax", "Sub", "Sum", "Tanh",
        "Transpose", "Upsample",
    }
)  # fmt: skip
"""Those that NVIDIA's table lists as native through TensorRT, and Identity, which is no layer."""
LARGEST_SIZE, LARGEST_BATCH = 8192, 4096


def is_dla(profile: HardwareProfile) -> bool:
    return all(unit.kind == "dla" for unit in profile.units)


def _dynamic(graph: ir.Graph) -> Iterator[ir.Node]:
    """The first reader of each input of which a size is not a number."""
    for value in graph.inputs:
        if value.shape is None or any(not isinstance(size, int) for size in value.shape):
            yield from value.consumers()[:1]


def _too_large(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        for value in node.outputs:
            sizes = [size for size in value.shape if isinstance(size, int)] if value.shape is not None else []
            if sizes and (sizes[0] > LARGEST_BATCH or max(sizes[1:], default=0) > LARGEST_SIZE):
                yield node


def _on_gpu(graph: ir.Graph) -> Iterator[ir.Node]:
    quantization = ("QuantizeLinear", "DequantizeLinear")  # a rule of their own
    return (node for node in nodes(graph) if node.op_type not in OPERATORS and node.op_type not in quantization)


def _computed_factors(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        if node.op_type == "MatMul" and constant_of(node.inputs[1]) is None:
            yield node


def _quantized(graph: ir.Graph) -> Iterator[ir.Node]:
    return (node for node in nodes(graph) if node.op_type == "DequantizeLinear")


RULES = (
    Rule("dla-fixed-shapes", "Fix every size: the DLA takes no dynamic shapes.", _dynamic, source=LAYERS),
    Rule("dla-no-explicit-quantization", "Leave the model float: the DLA reads no Q/DQ, and runs it in FP16.",
         _quantized, source=EXPLICIT),
    Rule("dla-operators", "The DLA has no such layer: the GPU runs it.", _on_gpu, "warning", OPERATORS_PAGE),
    Rule("dla-constant-factor", "Multiply by a constant: the GPU runs other matrix products.", _computed_factors,
         "warning", OPERATORS_PAGE),
    Rule("dla-sizes", "Stay below 8192 along each axis, and 4096 rows: the GPU runs what is larger.", _too_large,
         "warning", LAYERS),
)  # fmt: skip
