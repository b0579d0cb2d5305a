"""Small edits of an ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir


def like(node: ir.Node, kind: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], name: str) -> ir.Node:
    """A node that says that it comes from the module that ``node`` comes from; its result has its name."""
    made = ir.node(kind, inputs, attributes=attributes, name=name)
    made.outputs[0].name = name
    made.metadata_props.update(node.metadata_props)
    return made


def new_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """``tensor`` under its own name."""
    value = ir.Value(
        name=tensor.name, shape=ir.Shape([*tensor.shape]), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def drop_unused(graph: ir.Graph, value: ir.Value | None) -> None:
    """Remove the initializer ``value`` if nothing reads it any more."""
    if value is not None and not value.uses():
        graph.initializers.pop(str(value.name), None)
