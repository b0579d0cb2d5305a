"""The floats of an ONNX graph in 16 bits, inputs and outputs aside.

From version 11 on TensorRT computes in the types of the file, and has no flag for FP16. What 16 bits do not hold stays
in 32, between casts. A node stays if

1. it adds up many values, or its results run far beyond its operands (``_WIDE``), or it squares;
2. ONNX has it in FP32 alone, or a constant of it lies outside the range of normal numbers (an epsilon, a mask of
   -3e38; scales of Q/DQ too);
3. some finite value that it reads or makes on the sample inputs comes within a factor of four of the largest number;
4. no float input of the graph and no table is behind it: positions and masks, which are whole numbers, and cheap;
5. it dequantizes what a layer reads that stays.

What only moves values goes with its input.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.convenience import get_const_tensor
from onnx_ir.passes.common import ShapeInferencePass
from torch import Tensor

from planish.backends.to_onnx.rounding import is_scale
from planish.backends.to_tensorrt.dequantized import COMMUTING
from planish.backends.to_tensorrt.edits import drop_unused, like, new_initializer
from planish.backends.to_tensorrt.integers import LAYERS
from planish.backends.to_tensorrt.ranges import largest

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_LIMITS = np.finfo(np.float16)
LARGEST = float(_LIMITS.max) / 4
"""Of values seen on samples: others may be larger."""
_WIDE = frozenset(
    {
        "CumSum", "Exp", "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization", "Log",
        "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Pow", "RMSNormalization", "Range", "Reciprocal",
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
        "ReduceSumSquare", "Cos", "Sin", "Softmax", "Softplus", "Sqrt",
        "GRU", "LSTM", "NonMaxSuppression", "RNN",
        # An attribute says what type these make.
        "Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform",
        "RandomUniformLike",
    }
)  # fmt: skip
_MOVES = (COMMUTING - {"Cast", "Concat"}) | {"Identity", "ScatterND", "ScatterElements", "GatherElements", "GatherND"}


def in_half(model: ir.Model, inputs: Sequence[Tensor]) -> str | None:
    """Rewrite ``model`` in place; ``inputs``: those of one call. Returns why it was left as it is, where it was."""
    if any(True for _ in model.graph.subgraphs()):
        return "it has branches or loops"
    if any(node.domain not in ("", "ai.onnx") for node in model.graph):
        return "it has operators that ONNX does not define"
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        return "the type of a value is not known"
    _Halving(model, largest(model, inputs)).run()
    return None


class _Halving:
    def __init__(self, model: ir.Model, seen: Mapping[str, float]) -> None:
        """``seen``: name of a value -> the largest finite magnitude on sample inputs."""
        self._graph, self._seen = model.graph, seen
        self._opset = model.graph.opset_imports[""]
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        values = [*self._graph.inputs, *self._graph.initializers.values()]
        values += [value for node in self._graph for value in node.outputs]
        self._floats = {value for value in values if value.dtype is FLOAT}
        """Those that are in 32 bits before: others, FP16 among them, stay what they are."""
        self._data: set[ir.Value] = {value for value in self._graph.inputs if _is_float(value)}

    def run(self) -> None:
        originals = [*self._graph.initializers.values()]
        staying = {node for node in self._graph if self._stays(node)}  # before any type changes
        for layer in [node for node in staying if node.op_type in LAYERS]:
            staying.update(_dequantizers(layer))
        for node in [*self._graph]:
            self._convert(node, FLOAT if node in staying else HALF)
        for at, value in enumerate(self._graph.outputs):
            if value.dtype is HALF and value in self._floats:
                self._graph.outputs[at] = self._output(value)
        for value in originals:
            if not value.is_graph_output():
                drop_unused(self._graph, value)

    # ------------------------------------------------------------------ what stays

    def _stays(self, node: ir.Node) -> bool:
        read = node.inputs[:2] if node.op_type in LAYERS else node.inputs  # biases vanish beside what they are added to
        floats = [value for value in (*read, *node.outputs) if value in self._floats]
        carries = self._carries_data(node)
        if carries:
            self._data.update(filter(_is_float, node.outputs))
        return (
            node.op_type in _WIDE
            or any(map(_float_alone, _schema(node.op_type, self._opset).outputs))
            or not carries
            or _squares(node)
            or any(map(_beyond, floats))
            or any(self._seen.get(str(value.name), 0.0) > LARGEST for value in floats)
        )

    def _carries_data(self, node: ir.Node) -> bool:
        if node.op_type == "DequantizeLinear":
            return True
        source = node.inputs[0] if node.op_type in _MOVES else None
        if source is not None and get_const_tensor(source) is not None:  # tables, weights
            return True
        return any(value in self._data for value in node.inputs)

    # ------------------------------------------------------------------ types

    def _convert(self, node: ir.Node, wanted: ir.DataType) -> None:
        if node.op_type in _MOVES and wanted is HALF and (source := node.inputs[0]) is not None:
            constant = get_const_tensor(source) is not None
            wanted = source.dtype if source.dtype in (HALF, FLOAT) and not constant else HALF
        formal = _schema(node.op_type, self._opset).inputs
        for at, value in enumerate(node.inputs):
            if value in self._floats:
                kept = _float_alone(formal[min(at, len(formal) - 1)])  # the last one may stand for many
                node.replace_input_with(at, self._as(value, FLOAT if kept else wanted, node))
        for value in self._floats.intersection(node.outputs):
            value.type = ir.TensorType(wanted)
        if node.op_type == "Cast" and node.attributes["to"].as_int() == FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(wanted))

    def _as(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        if value.dtype is wanted:
            return value
        if (value, wanted) not in self._made:
            self._made[value, wanted] = (
                self._constant(value) if value.is_initializer() else self._cast(value, wanted, reader)
            )
        return self._made[value, wanted]

    def _constant(self, value: ir.Value) -> ir.Value:
        tensor = get_const_tensor(value)
        assert tensor is not None
        name = f"{value.name}.half"

        def rounded() -> ir.TensorProtocol:
            return ir.tensor(tensor.numpy().astype(np.float16), name=name)

        return new_initializer(
            self._graph, ir.LazyTensor(rounded, dtype=HALF, shape=ir.Shape([*tensor.shape]), name=name)
        )

    def _cast(self, value: ir.Value, wanted: ir.DataType, reader: ir.Node) -> ir.Value:
        source = value.producer()
        cast = like(source or reader, "Cast", [value], {"to": int(wanted)}, f"{value.name}.{wanted.name.lower()}")
        if source is None:
            self._graph.insert_before(self._graph[0], cast)
        else:
            self._graph.insert_after(source, cast)
        made = cast.outputs[0]
        made.type, made.shape = ir.TensorType(wanted), value.shape
        return made

    def _output(self, value: ir.Value) -> ir.Value:
        """``value`` in FP32 under its own name."""
        name = str(value.name)
        value.name = f"{name}.half"
        made = self._cast(value, FLOAT, next(iter(self._graph)))
        made.name = name
        return made


def _dequantizers(layer: ir.Node) -> list[ir.Node]:
    """What dequantizes operands of ``layer``, and what moves these in between.

    Behind a cast from FP16 to FP32 the builder runs a layer in float; the other way round it does not.
    """
    found: list[ir.Node] = []
    for operand in layer.inputs[:2]:
        path, node = list[ir.Node](), operand.producer() if operand is not None else None
        while node is not None and node.op_type in _MOVES:
            path.append(node)
            node = node.inputs[0].producer() if node.inputs[0] is not None else None
        if node is not None and node.op_type == "DequantizeLinear":
            found += [*path, node]
    return found


@functools.cache
def _schema(operator: str, opset: int) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(operator, opset)


def _float_alone(parameter: onnx.defs.OpSchema.FormalParameter) -> bool:
    """Whether ONNX has it in FP32 and not in FP16: the scales of a Resize, those of Q/DQ before opset 19."""
    return "tensor(float)" in parameter.types and "tensor(float16)" not in parameter.types


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _squares(node: ir.Node) -> bool:
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _beyond(value: ir.Value) -> bool:
    """Whether a constant has finite values that float16 does not hold, or is smaller than its normal numbers."""
    tensor = get_const_tensor(value)
    if tensor is None or tensor.size == 0:
        return False
    sizes = np.abs(tensor.numpy())
    finite = sizes[np.isfinite(sizes)]
    if not finite.size or not finite.any():
        return False
    small = finite[finite > 0].min() if finite.size == 1 or is_scale(value) else finite.max()
    return bool(finite.max() > float(_LIMITS.max) or small < float(_LIMITS.smallest_normal))
