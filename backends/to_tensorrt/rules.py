"""What TensorRT's parser rejects, and what it builds but runs in float without a word: rules over an ONNX graph.

The same rules serve ``planish check`` on a model, the lowered file, and a file that planish did not make.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from planish.backends.to_onnx.graph_rules import Rule, nodes
from planish.backends.to_tensorrt import dla
from planish.backends.to_tensorrt.dequantized import constant_of, integer, text
from planish.backends.to_tensorrt.integers import (
    fused_projections,
    half_quantized,
    scales_on_a_summed_axis,
    transposed_convolutions,
)
from planish.backends.to_tensorrt.operators import TABLES, Version, reads
from planish.backends.to_tensorrt.versions import oldest_version
from planish.compiler.hardware import HardwareProfile

EXPLICIT = (
    "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html"
)
QUANTIZED_TYPES = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html"
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_NUMBERS = frozenset({ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4, ir.DataType.FLOAT4E2M1})
_FLOAT8 = frozenset({ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1})


def rules_of(profile: HardwareProfile) -> tuple[Rule, ...]:
    """The rules of what the profile names: its versions of TensorRT, its dtypes, and of the DLA where it is one."""
    found = rules_for(oldest_version(profile), frozenset(profile.support.dtypes))
    return (*found, *dla.RULES) if dla.is_dla(profile) else found


def rules_for(version: Version, dtypes: frozenset[str]) -> tuple[Rule, ...]:
    """The rules of a TensorRT version, on a device that computes in ``dtypes`` (those of its profile)."""
    told = ".".join(map(str, version))
    newest = 17 if version < (8, 6) else 19 if version < (10, 15) else 24
    of_version = [
        Rule(
            "known-opset", f"Export with opset {newest} or older: TensorRT {told} is not known to read newer ones.",
            lambda graph: _newer(graph, newest), source=TABLES,
        ),
        Rule(
            "known-operators", f"Replace this operator: TensorRT {told} does not read it.",
            lambda graph: (node for node in nodes(graph) if node.domain or not reads(node.op_type, version)),
            source=TABLES,
        ),
    ]  # fmt: skip
    if version < (10, 0):
        of_version.append(FLOAT_WEIGHTS)
    if "fp8" not in dtypes:
        of_version.append(NO_FLOAT8)
    return (*of_version, *RULES)


# ---------------------------------------------------------------------- what the parser rejects


def _newer(graph: ir.Graph, opset: int) -> Iterator[ir.Node]:
    """The first node, for the whole graph."""
    if graph.opset_imports.get("", 0) > opset:
        yield from [*graph][:1]


def _zero_points(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        zero = node.inputs[2] if node.op_type in _QDQ and len(node.inputs) > 2 else None
        data = constant_of(zero)
        if zero is not None and (data is None or data.any()):
            yield node


def _scales(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        data = constant_of(node.inputs[1]) if node.op_type in _QDQ else None
        if data is not None and not (data > 0).all():
            yield node


def _integer_types(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        if node.op_type in _QDQ and _quantized_type(node) not in (*_NUMBERS, ir.DataType.UINT8, None):
            yield node


def _unsigned(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        if node.op_type in _QDQ and _quantized_type(node) is ir.DataType.UINT8:
            yield node


def _quantized_type(node: ir.Node) -> ir.DataType | None:
    """Of the integers that a QuantizeLinear writes or a DequantizeLinear reads; None where the file does not say."""
    if node.op_type == "DequantizeLinear":
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        quantize = source is not None and source.op_type == "QuantizeLinear"
        return _quantized_type(source) if source is not None and quantize else _dtype(node.inputs[0])
    if len(node.inputs) > 2:
        return _dtype(node.inputs[2])
    told = integer(node, "output_dtype", 0)
    return ir.DataType(told) if told else ir.DataType.UINT8  # as ONNX defines it


def _float8(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        if node.op_type in _QDQ and _quantized_type(node) in _FLOAT8:
            yield node


def _stray_integers(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        if node.op_type == "DequantizeLinear":
            continue
        for value in node.inputs:
            tensor = ir.convenience.get_const_tensor(value) if value is not None else None
            zero_point = node.op_type == "QuantizeLinear"
            if tensor is not None and tensor.dtype in _NUMBERS and not zero_point:
                yield node
                break


def _integer_weights(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if source is not None and ir.convenience.get_const_tensor(source) is not None:
            yield node


def _dilated_pools(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        steps = node.attributes["dilations"].as_ints() if "dilations" in node.attributes else []
        if node.op_type in ("MaxPool", "AveragePool", "LpPool") and any(step != 1 for step in steps):
            yield node


def _reducing_scatters(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in nodes(graph):
        if node.op_type == "ScatterND" and text(node, "reduction", "none") != "none":
            yield node


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return tensor.dtype if tensor is not None else value.dtype


FLOAT_WEIGHTS = Rule(
    "float-weights", "Quantize float weights with QuantizeLinear: TensorRT reads INT8 weights from version 10 on only.",
    _integer_weights, source="https://github.com/megvii-research/Sparsebit/issues/16",
)  # fmt: skip
NO_FLOAT8 = Rule(
    "no-fp8", "Quantize to INT8: this device computes in neither FP8 nor FP4.", _float8, source=QUANTIZED_TYPES
)

RULES = (
    Rule("symmetric", "Quantize symmetrically: TensorRT takes no zero point but 0.", _zero_points, source=TABLES),
    Rule("positive-scales", "Give every scale a value above 0.", _scales,
         source=EXPLICIT),
    Rule("int8", "Quantize to INT8: TensorRT dequantizes neither INT16 nor INT32 (leave biases float).",
         _integer_types, source=QUANTIZED_TYPES),
    Rule("signed", "Quantize to INT8, not UINT8: TensorRT takes it for INT8, which ends at 127.",
         _unsigned, source=TABLES),
    Rule("integers-to-dequantize", "Dequantize INT8 constants first: nothing else reads them.", _stray_integers,
         source=EXPLICIT),
    Rule("pools-without-dilation", "Pool without dilation.", _dilated_pools, source=TABLES),
    Rule("plain-scatter", "Scatter without a reduction.", _reducing_scatters, source=TABLES),
    Rule("quantize-all-inputs",
         "Quantize every input right in front of this layer: it runs in float where one is not INT8.",
         half_quantized, "warning", EXPLICIT),
    Rule("scales-of-outputs",
         "Give the weights a scale per output channel and the input one scale: this layer runs in float otherwise.",
         scales_on_a_summed_axis, "warning", EXPLICIT),
    Rule("fused-projection",
         "Make queries, keys and values in three layers, or give these weights one scale: attention is fused with this "
         "layer, and its INT8 weights are read as floats.",
         fused_projections, "warning", EXPLICIT),
    Rule("no-int8-transposed-convolution", "Leave transposed convolutions float: TensorRT runs them in float anyway.",
         transposed_convolutions, "warning", EXPLICIT),
)  # fmt: skip
