"""Operators whose result is their input: TensorRT drops them before it decides what runs in integers."""

from __future__ import annotations

import onnx_ir as ir

_WHERE_THE_SHAPE_STAYS = frozenset({"Expand", "Reshape", "Slice", "Tile"})


def does_nothing(node: ir.Node) -> bool:
    """Whether the builder drops ``node``; False where the graph does not say what shape it makes.

    Each row has been asked of it (tests/backends/to_tensorrt/pool_cases.py). It keeps others that change nothing
    either: a Gather of all indices, two transpositions that undo each other.
    """
    if node.op_type in ("Identity", "Cast", "Dropout"):
        return True
    if node.op_type == "Concat":
        return len(node.inputs) == 1
    if node.op_type == "Split":
        return len(node.outputs) == 1
    if node.op_type == "Transpose":
        order = node.attributes["perm"].as_ints() if "perm" in node.attributes else []
        return [*order] == [*range(len(order))] and bool(order)
    return node.op_type in _WHERE_THE_SHAPE_STAYS and _keeps_the_shape(node) and not _turns(node)


def _keeps_the_shape(node: ir.Node) -> bool:
    before = node.inputs[0].shape if node.inputs[0] is not None else None
    after = node.outputs[0].shape
    if before is None or after is None or not all(isinstance(size, int) or size.value is not None for size in after):
        return False
    return [*before] == [*after]


def _turns(node: ir.Node) -> bool:
    """Whether a Slice goes backward along some axis, or by steps that are not known."""
    if node.op_type != "Slice" or len(node.inputs) < 5 or node.inputs[4] is None:
        return False
    steps = ir.convenience.get_const_tensor(node.inputs[4])
    return steps is None or bool((steps.numpy() < 0).any())
