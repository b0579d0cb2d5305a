"""ONNX model -> file, at the speed of the disk and without a second copy of the weights.

Protocol buffers merge an embedded message that is given twice, and append what its repeated fields hold
(https://protobuf.dev/programming-guides/encoding/#last-one-wins). So a file is the model without its large
tensors, then for each of them a ``ModelProto`` that holds nothing but a ``GraphProto`` with that one initializer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

_LARGE = 1024
"""Bytes from which a tensor is streamed; smaller ones go through the serializer."""
_SINGLE_FILE = 2**31 - 2**20
"""Protocol buffers end at 2 GiB; the rest of the model takes its part."""

# Field numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, with their wire types.
_VARINT, _BYTES = 0, 2
_MODEL_GRAPH = 7 << 3 | _BYTES
_GRAPH_INITIALIZER = 5 << 3 | _BYTES
_TENSOR_DIMS = 1 << 3 | _VARINT
_TENSOR_DATA_TYPE = 2 << 3 | _VARINT
_TENSOR_NAME = 8 << 3 | _BYTES
_TENSOR_RAW_DATA = 9 << 3 | _BYTES


def save(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``; the same model gives the same bytes.

    Up to 2 GiB it is one file; above, the weights lie beside it in ``<name>.data``. An earlier file is
    replaced only when the new one is complete. Raises OSError (a full disk).
    """
    if sum(tensor.nbytes for tensor in _large(model).values()) > _SINGLE_FILE:
        _save_with_external_data(model, path)
        return
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _write(model, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _large(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    constants = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {
        name: tensor
        for name, tensor in constants.items()
        if tensor is not None and tensor.dtype is not ir.DataType.STRING and tensor.nbytes >= _LARGE
    }


def _write(model: ir.Model, file: BinaryIO) -> None:
    large = _large(model)
    with _without(model.graph, large):
        file.write(ir.to_proto(model).SerializeToString(deterministic=True))
    for name, tensor in large.items():
        header = _tensor_header(name, tensor)
        initializer = len(header) + tensor.nbytes
        graph = 1 + len(_varint(initializer)) + initializer
        file.write(bytes([_MODEL_GRAPH]) + _varint(graph) + bytes([_GRAPH_INITIALIZER]) + _varint(initializer) + header)
        _write_data(tensor, file)


@contextmanager
def _without(graph: ir.Graph, names: dict[str, ir.TensorProtocol]) -> Iterator[None]:
    """The graph without these initializers, for as long as the rest of it is serialized."""
    removed = {name: graph.initializers.pop(name) for name in names}
    try:
        yield
    finally:
        graph.initializers.update(removed)


def _tensor_header(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A TensorProto up to its raw data, which follows as it lies in memory (little-endian)."""
    encoded = name.encode()
    dims = b"".join(bytes([_TENSOR_DIMS]) + _varint(size) for size in tensor.shape.numpy())
    dtype = bytes([_TENSOR_DATA_TYPE]) + _varint(int(tensor.dtype))
    label = bytes([_TENSOR_NAME]) + _varint(len(encoded)) + encoded
    return dims + dtype + label + bytes([_TENSOR_RAW_DATA]) + _varint(tensor.nbytes)


def _write_data(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    start = file.tell()
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    written = file.tell() - start
    if written != tensor.nbytes:  # the header has promised it: the file would be unreadable
        raise OSError(f"{tensor.name} wrote {written} bytes instead of {tensor.nbytes}")


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _save_with_external_data(model: ir.Model, path: Path) -> None:
    """The data first, under its final name: the model that refers to it appears last."""
    partial = path.with_name(f".{path.name}.partial.onnx")
    try:
        ir.save(model, partial, external_data=f"{path.name}.data")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
