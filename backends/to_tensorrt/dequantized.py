"""What reaches an operand in integers: the DequantizeLinear behind it, looked for through what TensorRT commutes with.

TensorRT moves a DequantizeLinear forward over operators that only move values, or choose among them. A layer whose
operands are all dequantized then runs in integers. Which operators these are, NVIDIA's builder has answered
(tests/backends/to_tensorrt/test_agreement.py asks again).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from planish.backends.to_tensorrt.no_ops import does_nothing

COMMUTING = frozenset(
    {
        "Cast", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity",
        "MaxPool", "Neg", "Pad", "ReduceMax", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""All read their values at position 0; Concat at all of them."""


@dataclass(frozen=True)
class Dequantized:
    """A float value that is an integer times a scale."""

    scale: ir.Value
    axis: int | None
    """The axis that has a scale per index; None for one scale."""
    shape: tuple[int, ...] | None
    """Where it is known: that of a constant, and of what is computed from it."""
    constant: bool


def constant_of(value: ir.Value | None) -> Any | None:
    """The data of an initializer or of a Constant node; None for what is computed."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def dequantized(value: ir.Value | None) -> Dequantized | None:
    """How ``value`` comes from integers; None where it does not, or where an operator in between keeps it float."""
    node = value.producer() if value is not None else None
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        return _of_node(node)
    if node.op_type not in COMMUTING or not _commutes(node):
        return None
    behind = dequantized(node.inputs[0])
    if behind is None or (node.op_type == "Concat" and not _same_scales(node, behind)):
        return None
    return _moved(behind, node)


def scales_per_axis(scale: ir.Value) -> bool:
    """Whether a scale has one value a channel. TensorRT takes [1] along an axis for a scale per channel as well."""
    tensor = ir.convenience.get_const_tensor(scale)
    shape = tensor.shape if tensor is not None else scale.shape
    return shape is not None and len(shape) > 0


def _of_node(node: ir.Node) -> Dequantized:
    source, scale = node.inputs[0], node.inputs[1]
    assert source is not None and scale is not None
    quantize = source.producer()
    if quantize is not None and quantize.op_type == "QuantizeLinear":
        source = quantize.inputs[0]  # weights before TensorRT 10: floats, quantized by the builder
    tensor = ir.convenience.get_const_tensor(source) if source is not None else None
    shape = tuple(int(size) for size in tensor.shape.numpy()) if tensor is not None else None
    axis = None
    if scales_per_axis(scale):
        axis = integer(node, "axis", 1)
        rank = len(shape) if shape is not None else rank_of(node.outputs[0])
        axis = axis % rank if rank else axis
    return Dequantized(scale, axis, shape, tensor is not None)


def rank_of(value: ir.Value | None) -> int | None:
    return len(value.shape) if value is not None and value.shape is not None else None


def integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def text(node: ir.Node, name: str, default: str) -> str:
    return node.attributes[name].as_string() if name in node.attributes else default


def _commutes(node: ir.Node) -> bool:
    """Some of COMMUTING do so under conditions.

    1. A cast to FP16 alone: behind one from FP16 to FP32 layers run in float.
    2. A padding with zeros becomes part of the convolution that reads it, and that nothing else reads it with.
    3. A max pool right behind a DequantizeLinear whose values are quantized again joins that quantization: it pools
       floats for its other readers. With an operator in between (a transposition) it does not.
    """
    if node.op_type == "Cast":
        source, wanted = node.inputs[0], integer(node, "to", 0)
        same = source is not None and source.dtype == wanted
        return same or wanted == ir.DataType.FLOAT16
    if node.op_type == "Pad" and text(node, "mode", "constant") == "constant":
        return _pads_with_zeros(node) and _part_of_a_convolution(node)
    return node.op_type != "MaxPool" or not (_right_behind_integers(node) and _quantized_again(node))


def _pads_with_zeros(node: ir.Node) -> bool:
    filler = node.inputs[2] if len(node.inputs) > 2 else None
    data = constant_of(filler)
    return filler is None or (data is not None and not data.any())


def _part_of_a_convolution(pad: ir.Node) -> bool:
    readers = pad.outputs[0].consumers()
    return len(readers) == 1 and (
        readers[0].op_type == "Conv" or (readers[0].op_type == "Pad" and _part_of_a_convolution(readers[0]))
    )


_MAXIMA = frozenset({"GlobalMaxPool", "ReduceMax"})
"""A DequantizeLinear moves forward over them, a QuantizeLinear does not move backward."""


_WITH_ONE_SCALE = frozenset({"Expand", "Gather", "Neg", "Slice", "Tile"})


def _right_behind_integers(node: ir.Node) -> bool:
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    while maker is not None and does_nothing(maker) and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    return maker is not None and maker.op_type == "DequantizeLinear"


def _quantized_again(node: ir.Node, one_scale_alone: bool = False) -> bool:
    """Whether a QuantizeLinear can move backward to ``node``: over some operators it does so with one scale alone."""
    for reader in (reader for value in node.outputs for reader in value.consumers()):
        if reader.op_type == "QuantizeLinear":
            scale = reader.inputs[1]
            if not one_scale_alone or (scale is not None and not scales_per_axis(scale)):
                return True
        elif reader.op_type in COMMUTING - _MAXIMA and _quantized_again(
            reader, one_scale_alone or (reader.op_type in _WITH_ONE_SCALE and not does_nothing(reader))
        ):
            return True
    return False


def _same_scales(node: ir.Node, first: Dequantized) -> bool:
    parts = [dequantized(value) for value in node.inputs]
    return all(part is not None and part.axis is None and _equal(part.scale, first.scale) for part in parts)


def _equal(a: ir.Value, b: ir.Value) -> bool:
    x, y = constant_of(a), constant_of(b)
    return a is b or (x is not None and y is not None and np.array_equal(x, y))


# ---------------------------------------------------------------------- where the axis of the scales goes


def _moved(behind: Dequantized, node: ir.Node) -> Dequantized | None:
    """``behind`` as it leaves ``node``; None where its axis of scales is torn apart."""
    follow = _AXES.get(node.op_type)
    if follow is None:
        return behind if behind.axis is None else replace(behind, shape=None)
    places = follow(node, behind.shape)
    if places is None:
        return None if behind.axis is not None else replace(behind, shape=None)
    shape, axes = places
    if behind.axis is None:
        return replace(behind, shape=shape)
    return replace(behind, axis=axes.index(behind.axis), shape=shape) if behind.axis in axes else None


Places = tuple[tuple[int, ...] | None, Sequence[int | None]]
"""Shape of the result, and for each of its axes the axis that it was before (None: a new one)."""


def _transposed(node: ir.Node, shape: tuple[int, ...] | None) -> Places | None:
    rank = rank_of(node.inputs[0]) if shape is None else len(shape)
    order = node.attributes["perm"].as_ints() if "perm" in node.attributes else [*range(rank or 0)][::-1]
    return None if shape is None else tuple(shape[axis] for axis in order), [*order]


def _unsqueezed(node: ir.Node, shape: tuple[int, ...] | None) -> Places | None:
    data = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if data is None or shape is None:
        return None
    rank = len(shape) + data.size
    new = {int(axis) % rank for axis in data.flat}
    old = iter(range(len(shape)))
    axes = [None if place in new else next(old) for place in range(rank)]
    return tuple(1 if axis is None else shape[axis] for axis in axes), axes


def _squeezed(node: ir.Node, shape: tuple[int, ...] | None) -> Places | None:
    data = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if data is None or shape is None:
        return None
    gone = {int(axis) % len(shape) for axis in data.flat}
    axes = [axis for axis in range(len(shape)) if axis not in gone]
    return tuple(shape[axis] for axis in axes), axes


def _reshaped(node: ir.Node, shape: tuple[int, ...] | None) -> Places | None:
    """An axis stays itself where its size does, and the number of values in front of it."""
    asked = constant_of(node.inputs[1])
    if asked is None or shape is None:
        return None
    sizes = [int(size) if size else shape[place] for place, size in enumerate(asked.flat)]
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = math.prod(shape) // max(known, 1)
    starts = {(math.prod(shape[:axis]), size): axis for axis, size in enumerate(shape)}
    axes = [starts.get((math.prod(sizes[:place]), size)) for place, size in enumerate(sizes)]
    return tuple(sizes), axes


_AXES: dict[str, Callable[[ir.Node, tuple[int, ...] | None], Places | None]] = {
    "Transpose": _transposed, "Unsqueeze": _unsqueezed, "Squeeze": _squeezed, "Reshape": _reshaped,
    "Flatten": lambda node, shape: None,
}  # fmt: skip
