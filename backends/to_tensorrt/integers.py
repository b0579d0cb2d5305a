"""Which layers of an ONNX graph TensorRT runs in INT8, and why others that are meant for it run in float."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from planish.backends.to_tensorrt.dequantized import Dequantized, dequantized, integer, rank_of

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def meant_for_integers(graph: ir.Graph) -> Iterator[ir.Node]:
    """Layers with at least one operand that comes from integers."""
    for node in graph:
        if node.op_type in LAYERS and any(dequantized(value) for value in node.inputs[:2]):
            yield node


def half_quantized(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in meant_for_integers(graph):
        if node.op_type != "ConvTranspose" and not all(dequantized(value) for value in node.inputs[:2]):
            yield node


def transposed_convolutions(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in meant_for_integers(graph):
        if node.op_type == "ConvTranspose":
            yield node


def scales_on_a_summed_axis(graph: ir.Graph) -> Iterator[ir.Node]:
    """Layers that sum over an axis along which the scale changes: the products cannot be added as integers."""
    for node in meant_for_integers(graph):
        operands = [dequantized(value) for value in node.inputs[:2]]
        if node.op_type != "ConvTranspose" and all(operands):
            axes = zip(operands, _output_axes(node, operands), strict=True)
            if any(operand.axis is not None and operand.axis != own for operand, own in axes if operand is not None):
                yield node


def fused_projections(graph: ir.Graph) -> Iterator[ir.Node]:
    """Layers that make queries, keys and values of several heads at once, with a scale per output channel.

    The builder fuses attention with them, and then reads their weights as floats. With one scale, with three layers
    instead of one, or with two parts instead of three, it does not.
    """
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type != "MatMul":
            continue
        ends = [_projection(value) for value in node.inputs[:2]]
        layer = ends[0]
        weight = dequantized(layer.inputs[1]) if layer is not None else None
        if layer is not None and layer is ends[1] and weight is not None and weight.axis is not None:
            found.add(layer)
    planned = {*meant_for_integers(graph)}
    return (node for node in graph if node in found & planned)


def _projection(value: ir.Value | None, divided: bool = False, heads: bool = False) -> ir.Node | None:
    """The layer that ``value`` is a third of, in heads (a transposition of four dimensions or more lies between)."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type in LAYERS:
        return node if divided and heads else None
    divided = divided or _is_a_third(node)
    heads = heads or (node.op_type == "Transpose" and len(node.attributes["perm"].as_ints()) >= 4)
    sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    found = {_projection(source, divided, heads) for source in sources}
    return found.pop() if len(found) == 1 else None


def _is_a_third(node: ir.Node) -> bool:
    if node.op_type == "Split":
        return len(node.outputs) == 3
    source = node.inputs[0] if node.op_type in ("Gather", "Slice") else None
    return source is not None and sum(reader.op_type == node.op_type for reader in source.consumers()) == 3


def runs_in_integers(graph: ir.Graph) -> Iterator[ir.Node]:
    """What no rule of this file keeps float."""
    kept = {
        *half_quantized(graph), *transposed_convolutions(graph), *scales_on_a_summed_axis(graph),
        *fused_projections(graph),
    }  # fmt: skip
    return (node for node in meant_for_integers(graph) if node not in kept)


def _output_axes(node: ir.Node, operands: list[Dequantized | None]) -> tuple[int | None, int | None]:
    """For each operand the axis along which it may have a scale per index: one that the layer does not sum over."""
    if node.op_type == "Conv":
        return None, 0
    if node.op_type == "Gemm":
        return integer(node, "transA", 0), 1 - integer(node, "transB", 0)
    ranks = [
        len(operand.shape) if operand is not None and operand.shape is not None else rank_of(value)
        for operand, value in zip(operands, node.inputs, strict=True)
    ]
    rows = 0 if ranks[0] == 2 else None  # batches of rows have one scale in TensorRT
    return rows, None if ranks[1] is None else ranks[1] - 1
