"""How far a device's outputs may lie from the expected ones: what its rounding costs this very model, on its samples.

The file is run again by ONNX Runtime with rounding written into its graph. As FP16 numbers it would not do: ONNX
Runtime has no kernels for them on CPUs, computes in FP32 and leaves out what it was to round in between.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.convenience import get_const_tensor
from onnx_ir.passes.common import ShapeInferencePass
from torch import Tensor

from planish.backends.to_onnx.files import save
from planish.backends.to_onnx.reference import Reference
from planish.compiler.verify import snr_db

BITS = {"float16": 8, "float32": 17}
"""Significant bits that the replay rounds to. FP16 and TF32 have 11: kernels may add up in them too. FP32 has 24: its
kernels add up thousands of products one by one, in any order. Whole numbers are rounded up or down by chance."""
MARGIN_DB = 6.0
"""Twice the error: samples differ."""
DRAWS = 4
"""Of what is rounded by chance; the error is the mean of them."""
_KEEP = frozenset(
    {
        "Cast", "Concat", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Neg",
        "QuantizeLinear", "ReduceMax", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
"""Whose results have no more bits than their inputs, or are integers."""
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_LARGEST = 1e30


def least_snr_db(file: Path, inputs: Sequence[Tensor], precision: Literal["float16", "float32"]) -> float:
    """What the outputs of a device must have against ONNX Runtime's, of the Q/DQ graph in float.

    ``precision``: what it may compute in where the file says FP32 (float16: TF32 as well).
    """
    expected = Reference(file)(inputs)
    draws = [replayed(ir.load(file), inputs, BITS[precision], draw) for draw in range(DRAWS)]
    found = [
        snr_db(torch.cat([wanted.double()] * DRAWS), torch.cat([each.double() for each in got]))
        for wanted, *got in zip(expected, *draws, strict=True)
    ]
    worst = min((each for each in found if each is not None), default=6.02 * BITS[precision])
    return round(worst - MARGIN_DB, 1)


def replayed(model: ir.Model, inputs: Sequence[Tensor], bits: int, draw: int = 0) -> list[Tensor]:
    """The outputs of ``model`` (changed in place) with floats of ``bits`` significant bits, and by-chance integers."""
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    _round_by_chance(model.graph, draw)
    _round_floats(model.graph, bits)
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        save(model, Path(scratch) / "model.onnx")
        return Reference(Path(scratch) / "model.onnx")(inputs)


def _round_floats(graph: ir.Graph, bits: int) -> None:
    """Round every float constant and result to ``bits`` significant ones.

    c - (c - x) with c = (2^(24 - bits) + 1) x does it: T. J. Dekker, 1971, https://doi.org/10.1007/BF01397083.
    """
    factor = float(2 ** (24 - bits) + 1)
    for value in [*graph.initializers.values()]:
        tensor = value.const_value
        if tensor is not None and tensor.dtype in _FLOATS and not is_scale(value):
            value.const_value = _rounded(tensor, factor)
    splitter = _constant(graph, factor, "splitter")
    ends = [_constant(graph, end, f"end{end:g}") for end in (-_LARGEST, _LARGEST)]
    for node in [*graph]:
        for value in node.outputs if node.op_type not in _KEEP else ():
            if value.dtype in _FLOATS:
                wide = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})
                near = ir.node("Clip", [wide.outputs[0], *ends])
                large = ir.node("Mul", [near.outputs[0], splitter])
                rest = ir.node("Sub", [large.outputs[0], near.outputs[0]])
                result = ir.node("Sub", [large.outputs[0], rest.outputs[0]])
                narrow = ir.node("Cast", [result.outputs[0]], {"to": int(value.dtype)})
                _put_behind(graph, value, [wide, near, large, rest, result, narrow])


def is_scale(value: ir.Value) -> bool:
    """Of Q/DQ: kernels have them as they are."""
    return any(use.idx == 1 and use.node.op_type in ("QuantizeLinear", "DequantizeLinear") for use in value.uses())


def _rounded(tensor: ir.TensorProtocol, factor: float) -> ir.TensorProtocol:
    def make() -> ir.TensorProtocol:
        values = tensor.numpy().astype(np.float32)
        near = np.clip(values, -_LARGEST, _LARGEST)
        large = near * np.float32(factor)
        rounded = np.where(np.abs(values) < _LARGEST, large - (large - near), values)
        return ir.tensor(rounded.astype(tensor.dtype.numpy()), name=tensor.name)

    return ir.LazyTensor(make, dtype=tensor.dtype, shape=ir.Shape([*tensor.shape]), name=tensor.name)


def _round_by_chance(graph: ir.Graph, draw: int) -> None:
    """Let each QuantizeLinear of a computed value round up or down by chance, to the value on average."""
    for at, node in enumerate([*graph]):
        value, scale = node.inputs[:2] if node.op_type == "QuantizeLinear" else (None, None)
        factors = get_const_tensor(scale) if scale is not None else None
        if value is None or factors is None or get_const_tensor(value) is not None:
            continue
        step = factors.numpy().astype(np.float32)
        if step.ndim:
            if value.shape is None:
                continue
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
            step = step.reshape([-1 if dim == axis % len(value.shape) else 1 for dim in range(len(value.shape))])
        seed = float(at + draw * 2**16)
        noise = ir.node("RandomUniformLike", [value], {"low": -0.5, "high": 0.5, "seed": seed, "dtype": 1})
        scaled = ir.node("Mul", [noise.outputs[0], _constant(graph, step, f"step{at}")])
        as_read = ir.node("Cast", [scaled.outputs[0]], {"to": int(value.dtype or ir.DataType.FLOAT)})
        moved = ir.node("Add", [value, as_read.outputs[0]])
        graph.insert_before(node, [noise, scaled, as_read, moved])
        node.replace_input_with(0, moved.outputs[0])


def _constant(graph: ir.Graph, value: float | np.ndarray, name: str) -> ir.Value:
    tensor = ir.tensor(np.asarray(value, np.float32), name=f"planish.rounding.{name}")
    made = ir.Value(
        name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape([*tensor.shape])
    )
    graph.register_initializer(made)
    return made


def _put_behind(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Let all readers of ``value``, and the graph's output, read the last of ``nodes`` instead."""
    source, result = value.producer(), nodes[-1].outputs[0]
    assert source is not None
    readers = [use for use in value.uses() if use.node not in nodes]
    graph.insert_after(source, nodes)
    for use in readers:
        use.node.replace_input_with(use.idx, result)
    if value.is_graph_output():
        name, at = str(value.name), [*graph.outputs].index(value)
        value.name = f"{name}.exact"
        result.name, result.type, result.shape = name, value.type, value.shape
        graph.outputs[at] = result
