"""What ONNX Runtime really makes of a file: its own optimized model, read back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort

from planish.backends.to_onnx.graph_rules import in_float
from planish.compiler.program import Program
from planish.compiler.report import Decision

_WEIGHTED = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)
_WEIGHTLESS = frozenset({"Add", "Sum", "AveragePool", "GlobalAveragePool", "Concat"})
_MOVES = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "ReorderInput", "ReorderOutput", "Pad", "Slice"}
)


def float_fallbacks(file: Path, program: Program) -> tuple[list[Decision], list[str]]:
    """The ops of ``file`` that compute on dequantized values: meant for INT8, run in float.

    Also the sentences that sum the optimized model up for the Report.
    """
    graph = _optimized(file)
    producers = {output: node for node in graph.node for output in node.output}
    consumers = {name: node for node in graph.node for name in node.input}
    fallbacks = [
        in_float(node, program, f"ONNX Runtime runs it as {node.op_type} on dequantized values")
        for node in graph.node
        if _was_meant_for_integers(node, producers, consumers)
    ]
    integer = sum(node.op_type.startswith(("QLinear", "QGemm", "MatMulInteger", "ConvInteger")) for node in graph.node)
    notes = (
        [f"ONNX Runtime's own optimized model has {integer} integer operators among {len(graph.node)}."]
        if integer
        else []
    )
    return fallbacks, notes


def _optimized(file: Path) -> onnx.GraphProto:
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        target = Path(scratch) / "optimized.onnx"
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4  # it warns that the optimized model suits this machine only: just what is wanted
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        options.intra_op_num_threads = 1
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return onnx.load(target, load_external_data=False).graph


def _was_meant_for_integers(
    node: onnx.NodeProto, producers: dict[str, onnx.NodeProto], consumers: dict[str, onnx.NodeProto]
) -> bool:
    """A dequantized input beside a dequantized weight says so; without weights: also a result that is quantized.

    Weights alone may be stored as integers.
    """
    if node.op_type in _WEIGHTED:
        return len(node.input) > 1 and all(_is_dequantized(name, producers) for name in node.input[:2])
    reader = consumers.get(node.output[0])
    quantized = reader is not None and reader.op_type == "QuantizeLinear"
    return node.op_type in _WEIGHTLESS and quantized and all(_is_dequantized(name, producers) for name in node.input)


def _is_dequantized(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"
