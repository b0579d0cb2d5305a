"""One layer as three, each with a third of the output channels: the same numbers, in layers of their own.

TensorRT-RTX fuses attention with the layer that makes queries, keys and values at once, and then reads INT8 weights
with a scale per channel as floats. It keeps three layers in INT8 (tests/backends/to_tensorrt/test_agreement.py).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.convenience import get_const_tensor, replace_nodes_and_values

from planish.backends.to_tensorrt.edits import drop_unused, like, new_initializer

PARTS = 3


def in_three(graph: ir.Graph, layer: ir.Node) -> None:
    """Replace ``layer`` by three and a Concat; left as it is where its weight is not INT8 constants behind one DQ."""
    dequantize = layer.inputs[1].producer() if layer.inputs[1] is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or len(dequantize.outputs[0].uses()) > 1:
        return
    stored = [get_const_tensor(value) for value in dequantize.inputs if value is not None]
    bias = get_const_tensor(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] is not None else None
    axis = dequantize.attributes["axis"].as_int()
    if (len(layer.inputs) > 2 and bias is None) or any(tensor is None for tensor in stored):
        return
    made: list[ir.Node] = []
    for part in range(PARTS):
        cut = [_part(graph, tensor, axis if at == 0 else 0, part) for at, tensor in enumerate(stored) if tensor]
        weight = like(dequantize, "DequantizeLinear", cut, {"axis": axis}, f"{dequantize.name}.third{part}")
        inputs = [layer.inputs[0], weight.outputs[0], *([] if bias is None else [_part(graph, bias, 0, part)])]
        attributes = {name: attribute.value for name, attribute in layer.attributes.items()}
        made += [weight, like(layer, layer.op_type, inputs, attributes, f"{layer.name}.third{part}")]
    whole = like(layer, "Concat", [node.outputs[0] for node in made[1::2]], {"axis": -1}, f"{layer.name}.thirds")
    unused = [*dequantize.inputs, *layer.inputs[2:]]
    replace_nodes_and_values(graph, layer, [layer], [*made, whole], [layer.outputs[0]], [whole.outputs[0]])
    graph.remove(dequantize, safe=True)
    for value in unused:
        drop_unused(graph, value)


def _part(graph: ir.Graph, tensor: ir.TensorProtocol, axis: int, part: int) -> ir.Value:
    """A third of ``tensor`` along ``axis``, cut when the file is written."""
    width = int(tensor.shape.numpy()[axis]) // PARTS
    shape = [width if place == axis else int(size) for place, size in enumerate(tensor.shape.numpy())]
    name = _free_name(graph, f"{tensor.name}.third{part}")
    return new_initializer(
        graph, ir.LazyTensor(_cut(tensor, axis, part, width), dtype=tensor.dtype, shape=ir.Shape(shape), name=name)
    )


def _cut(tensor: ir.TensorProtocol, axis: int, part: int, width: int) -> Callable[[], ir.TensorProtocol]:
    def make() -> ir.TensorProtocol:
        places = [slice(None)] * axis + [slice(part * width, (part + 1) * width)]
        return ir.tensor(tensor.numpy()[tuple(places)].copy())

    return make


def _free_name(graph: ir.Graph, stem: str) -> str:
    """Constants may be shared by several layers: their parts are cut once for each."""
    name, count = stem, 0
    while name in graph.initializers:
        count += 1
        name = f"{stem}.{count}"
    return name
