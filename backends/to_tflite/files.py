"""A TFLite graph -> file, without a second copy of the weights.

In a flatbuffer a table refers to a vector by the distance to it (https://flatbuffers.dev/internals/), and the vector
may lie anywhere behind. So the graph is packed with an empty vector for each constant; then the constants follow
it, one by one, and each distance is set anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as fb

from planish.backends.to_tflite import schema
from planish.backends.to_tflite.graph import Graph, Operator
from planish.backends.to_tflite.values import Quantization, Stored, Value
from planish.compiler.errors import LoweringError

IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"
_LARGEST = 2**31 - 1
_ALIGNMENT = 16
_BUFFER_DATA = 4
"""Place of ``data`` in the vtable of a Buffer: the first field of a table."""


def save(graph: Graph, path: Path) -> list[Operator]:
    """Write ``graph`` to ``path``, and return its operators: what no output depends on is left out.

    The same graph gives the same bytes.

    An earlier file is replaced only when the new one is complete. Raises OSError (a full disk), and LoweringError
    beyond the 2 GiB that the format holds.
    """
    kept = needed(graph)
    tensors = _tensors(kept, graph.inputs, graph.outputs)
    constants = [
        *{id(tensor.data): tensor for tensor in tensors if tensor.data is not None}.values()
    ]  # data may be shared
    packed = bytearray(_pack(kept, tensors, constants, graph.inputs, graph.outputs))
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _write(packed, constants, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return kept


def needed(graph: Graph) -> list[Operator]:
    """The operators that an output depends on."""
    read = {value.stored for value in graph.outputs}
    kept = []
    for operator in reversed(graph.operators):
        if any(output.stored in read for output in operator.outputs):
            kept.append(operator)
            read.update(value.stored for value in operator.inputs if value is not None)
    return kept[::-1]


def _tensors(operators: Sequence[Operator], inputs: Sequence[Value], outputs: Sequence[Value]) -> list[Stored]:
    values = [*inputs, *(value for op in operators for value in (*op.inputs, *op.outputs)), *outputs]
    return list(dict.fromkeys(value.stored for value in values if value is not None))


# ---------------------------------------------------------------------- the graph


def _pack(
    operators: Sequence[Operator],
    tensors: Sequence[Stored],
    constants: Sequence[Stored],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
) -> bytes:
    places = {tensor: place for place, tensor in enumerate(tensors)}
    buffers = {id(tensor.data): place + 1 for place, tensor in enumerate(constants)}  # buffer 0 is empty by convention
    codes: dict[tuple[str, int], int] = {}
    ends = [[places[value.stored] for value in values] for values in (inputs, outputs)]
    graph = fb.SubGraphT(
        tensors=[_tensor(tensor, buffers.get(id(tensor.data), 0)) for tensor in tensors],
        inputs=ends[0],
        outputs=ends[1],
        operators=[_operator(operator, places, codes) for operator in operators],
        name="main",
    )
    names = [[value.stored.name for value in values] for values in (inputs, outputs)]
    mapped = [[fb.TensorMapT(name, place) for name, place in zip(*pair, strict=True)] for pair in zip(names, ends)]  # noqa: B905
    model = fb.ModelT(
        version=3,
        operatorCodes=[
            fb.OperatorCodeT(min(schema.code(kind), 127), None, version, schema.code(kind)) for kind, version in codes
        ],
        subgraphs=[graph],
        description="planish",
        buffers=[fb.BufferT(), *(fb.BufferT(np.zeros(0, np.uint8)) for _ in constants)],
        signatureDefs=[fb.SignatureDefT(mapped[0], mapped[1], SIGNATURE, 0)],
    )
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _tensor(tensor: Stored, buffer: int) -> Any:
    shape = np.array(tensor.shape, np.int32)
    quantization = tensor.quantization and _quantization(tensor.quantization)
    return fb.TensorT(shape, schema.TYPES[tensor.dtype], buffer, tensor.name, quantization, hasRank=True)


def _quantization(quantization: Quantization) -> Any:
    return fb.QuantizationParametersT(
        scale=np.array(quantization.scales, np.float32),
        zeroPoint=np.array(quantization.zeros, np.int64),
        quantizedDimension=quantization.axis,
    )


def _operator(operator: Operator, places: dict[Stored, int], codes: dict[tuple[str, int], int]) -> Any:
    code = codes.setdefault((operator.kind, schema.version(operator.kind, operator.inputs)), len(codes))
    kind, table = schema.options(operator.kind, operator.options)
    return fb.OperatorT(
        code,
        np.array([-1 if value is None else places[value.stored] for value in operator.inputs], np.int32),
        np.array([places[value.stored] for value in operator.outputs], np.int32),
        kind,
        table,
    )


# ---------------------------------------------------------------------- the constants


def _write(packed: bytearray, constants: Sequence[Stored], file: BinaryIO) -> None:
    model = fb.Model.GetRootAs(packed, 0)
    file.write(packed)
    distances = []
    for index, tensor in enumerate(constants, start=1):
        field = model.Buffers(index)._tab
        place = field.Pos + field.Offset(_BUFFER_DATA)
        assert tensor.data is not None
        data = tensor.data().contiguous().numpy(force=True)
        file.write(bytes(-(file.tell() + 4) % _ALIGNMENT))  # the data behind its length is aligned
        distances.append((place, file.tell() - place))
        if file.tell() + data.nbytes > _LARGEST:
            raise LoweringError("Split the model: a TFLite file holds at most 2 GiB", component="tflite")
        file.write(data.nbytes.to_bytes(4, "little"))
        file.write(data.data if data.size else b"")
    for place, distance in distances:
        file.seek(place)
        file.write(distance.to_bytes(4, "little"))
