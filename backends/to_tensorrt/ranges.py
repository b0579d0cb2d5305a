"""The largest values that an ONNX graph computes on sample inputs, by ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from torch import Tensor

from planish.backends.to_onnx.files import save
from planish.backends.to_onnx.reference import Reference

_STEM = "planish.largest."


def largest(model: ir.Model, inputs: Sequence[Tensor]) -> dict[str, float]:
    """Name of each float value -> its largest finite magnitude. The graph itself finds it: values are not kept."""
    observed = model.clone()
    graph = observed.graph
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(observed)
    graph.outputs.clear()
    for node in [*graph]:
        for value in node.outputs:
            if value.dtype is ir.DataType.FLOAT:
                graph.outputs.append(_observed(graph, value))
    if not graph.outputs:
        return {}
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        save(observed, Path(scratch) / "model.onnx")
        reference = Reference(Path(scratch) / "model.onnx")
        found = zip(reference.output_names, reference(inputs), strict=True)
        return {name.removeprefix(_STEM): float(value) for name, value in found}


def _observed(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The largest of |value|, without those that are infinite or no number."""
    zero = ir.Value(name=f"{_STEM}zero", const_value=ir.tensor(0.0, name=f"{_STEM}zero", dtype=ir.DataType.FLOAT))
    if zero.name not in graph.initializers:
        graph.register_initializer(zero)
    size = ir.node("Abs", [value])
    finite = ir.node("Less", [size.outputs[0], _infinity(graph)])
    kept = ir.node("Where", [finite.outputs[0], size.outputs[0], graph.initializers[f"{_STEM}zero"]])
    largest_one = ir.node("ReduceMax", [kept.outputs[0]], {"keepdims": 0})
    graph.extend([size, finite, kept, largest_one])
    result = largest_one.outputs[0]
    result.name, result.type, result.shape = f"{_STEM}{value.name}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    return result


def _infinity(graph: ir.Graph) -> ir.Value:
    name = f"{_STEM}infinity"
    if name not in graph.initializers:
        tensor = ir.tensor(float("inf"), name=name, dtype=ir.DataType.FLOAT)
        graph.register_initializer(ir.Value(name=name, const_value=tensor))
    return graph.initializers[name]
