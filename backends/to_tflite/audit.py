"""What really stands in a file: read back with the schema, not from what the emitter meant to write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as fb
from torch import fx

from planish.backends.to_tflite import integers
from planish.backends.to_tflite.activations import bounds
from planish.compiler.errors import VerificationError
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.report import Decision

_KINDS = {number: name for name, number in vars(fb.BuiltinOperator).items() if isinstance(number, int)}
_BIASES = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}
"""Operators with a bias -> its place among the inputs; input and weight lie ahead of it."""
_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")
FLOATS = (fb.TensorType.FLOAT32, fb.TensorType.FLOAT16)


@dataclass(frozen=True)
class FileOperator:
    """One operator of a file, with its tensors as the schema has them; None for one that is left out."""

    kind: str
    inputs: list[Any]
    outputs: list[Any]


def operators_in(file: Path) -> list[FileOperator]:
    model = fb.Model.GetRootAs(bytearray(file.read_bytes()), 0)
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(place) for place in range(graph.TensorsLength())]
    codes = [_code(model.OperatorCodes(place)) for place in range(model.OperatorCodesLength())]

    def read(places: Any) -> list[Any]:
        return [None if place < 0 else tensors[place] for place in places.tolist()]

    operators = (graph.Operators(place) for place in range(graph.OperatorsLength()))
    return [
        FileOperator(_KINDS[codes[op.OpcodeIndex()]], read(op.InputsAsNumpy()), read(op.OutputsAsNumpy()))
        for op in operators
    ]


def _code(code: Any) -> int:
    return int(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))


def demand_bias_scales(operators: Sequence[FileOperator]) -> None:
    """Raise VerificationError unless every bias has the product of the scales of its input and its weight.

    A bias of another scale is added all the same, and the result is silently wrong.
    https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec
    """
    for operator in operators:
        place = _BIASES.get(operator.kind)
        if place is None or len(operator.inputs) <= place or operator.inputs[place] is None:
            continue
        bias, weight = operator.inputs[place], operator.inputs[1]
        if bias.Type() != fb.TensorType.INT32:
            continue
        source = operator.inputs[2 if operator.kind == "TRANSPOSE_CONV" else 0]
        wanted = _scales(source) * _scales(weight)
        if not np.allclose(_scales(bias), wanted, rtol=1e-5, atol=0):
            raise VerificationError(
                f"Report this to planish: the bias of {operator.kind} at {_name(operator)} has the scale "
                f"{_scales(bias)[0]:.6g}, input times weight {wanted[0]:.6g}."
            )


def _scales(tensor: Any) -> np.ndarray:
    return np.atleast_1d(np.asarray(tensor.Quantization().ScaleAsNumpy(), dtype=np.float64))


def _name(operator: FileOperator) -> str:
    return str(operator.outputs[0].Name().decode())


def summary(operators: Sequence[FileOperator]) -> str:
    """How many operators, of which kinds, and how many of them only move values."""
    kinds = Counter(operator.kind for operator in operators)
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    return f"The file has {len(operators)} operators ({told}); {kinds['TRANSPOSE'] or 'no'} TRANSPOSE."


def float_fallbacks(
    operators: Sequence[FileOperator], nodes: Sequence[fx.Node | None], program: Program
) -> list[Decision]:
    """The nodes that read and give integers in the Program, and compute in float in the file.

    ``nodes``: what each operator was written for.
    """
    in_float = {
        node: operator.kind
        for operator, node in zip(operators, nodes, strict=True)
        if node is not None and operator.kind not in _CONVERSIONS and operator.outputs[0].Type() in FLOATS
    }
    return [
        Decision(
            module=source_module(node), op=op_name(node), node=node.name, outcome="float",
            reason=f"TFLite runs it as {in_float[node]} on dequantized values",
        )
        for node in _meant_for_integers(program)
        if node in in_float
    ]  # fmt: skip


def _meant_for_integers(program: Program) -> Iterator[fx.Node]:
    conversions = (integers.QUANTIZE, integers.DEQUANTIZE, integers.DEQUANTIZE_CHANNELS)
    for node in program.calls():
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        if node.target in conversions or not sources or not all(s.target in conversions[1:] for s in sources):
            continue
        users = [*node.users]
        while len(users) == 1 and bounds(users[0]) is not None:
            users = [*users[0].users]
        if users and all(user.target is integers.QUANTIZE for user in users):
            yield node
