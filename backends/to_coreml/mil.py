"""A saved .mlpackage, read back: the MIL program as it stands in the file, its weights in place.

Protocol buffers: https://github.com/apple/coremltools/blob/main/mlmodel/format/MIL.proto. Nothing is inferred, folded
or optimized here, so that what is evaluated is the file and not what somebody meant to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.backends.to_coreml.blobs import Blobs, unpacked
from planish.compiler.errors import UserError

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights")

# MIL.proto, enum DataType: how torch holds each; numbers of less than a byte are kept one in a byte.
_TORCH = {
    "BOOL": torch.bool, "FLOAT16": torch.float16, "FLOAT32": torch.float32, "FLOAT64": torch.float64,
    "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64, "INT4": torch.int8,
    "UINT8": torch.uint8, "UINT16": torch.int32, "UINT32": torch.int64,
    "UINT1": torch.uint8, "UINT2": torch.uint8, "UINT3": torch.uint8, "UINT4": torch.uint8, "UINT6": torch.uint8,
}  # fmt: skip
_NUMPY = {
    "FLOAT16": "<f2", "FLOAT32": "<f4", "FLOAT64": "<f8", "INT8": "i1", "UINT8": "u1", "INT16": "<i2", "UINT16": "<u2",
    "INT32": "<i4", "UINT32": "<u4", "INT64": "<i8", "BOOL": "?",
}  # fmt: skip
SUB_BYTE = {"INT4": 4, "UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6}

Value = Tensor | str
Size = int | None
"""None: known when the model runs."""


@dataclass(frozen=True)
class Type:
    """What a value is declared to be. ``shape`` is None for a rank that is not known."""

    name: str
    shape: tuple[Size, ...] | None

    @property
    def dtype(self) -> torch.dtype:
        return _TORCH[self.name]


@dataclass(frozen=True)
class Name:
    """A reference to a value that an operation before this one has made."""

    name: str


@dataclass(frozen=True)
class Operation:
    type: str
    inputs: dict[str, list[Name | Value]]
    outputs: list[tuple[str, Type]]
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """Operations in order, with the values that come in and go out; the body of a function, a branch or a loop."""

    inputs: list[str]
    operations: list[Operation]
    outputs: list[str]


@dataclass(frozen=True)
class Feature:
    """An input or output as the package describes it to the app."""

    name: str
    kind: str
    """``multiArrayType``, ``imageType``, ``stringType``, ``dictionaryType`` … of Model.proto."""
    bounds: tuple[tuple[int, int], ...] = ()
    """Smallest and largest size of each axis of an array."""


@dataclass(frozen=True)
class Package:
    """What is in an .mlpackage."""

    inputs: dict[str, Type]
    block: Block
    input_features: list[Feature]
    output_features: list[Feature]
    specification: int


def read_package(path: Path) -> Package:
    """The program in the package at ``path``. Raises UserError if it is damaged or no ML Program."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString((path / MODEL).read_bytes())
    except Exception as failure:  # protobuf's decoding errors share no base with OSError
        raise UserError(f"Compile again: {path} cannot be read ({failure}).") from failure
    if spec.WhichOneof("Type") != "mlProgram" or "main" not in spec.mlProgram.functions:
        raise UserError(f"Give an ML Program: {path} holds another kind of Core ML model.")
    main = spec.mlProgram.functions["main"]
    block = _Reader(Blobs(path / WEIGHTS)).block(main.block_specializations[main.opset])
    return Package(
        inputs={each.name: _type(each.type) for each in main.inputs},
        block=block,
        input_features=[_feature(each) for each in spec.description.input],
        output_features=[_feature(each) for each in spec.description.output],
        specification=spec.specificationVersion,
    )


def _feature(described: Any) -> Feature:
    kind = described.type.WhichOneof("Type") or ""
    array = described.type.multiArrayType
    ranges = tuple((size.lowerBound, size.upperBound) for size in array.shapeRange.sizeRanges)
    return Feature(described.name, kind, ranges or tuple((size, size) for size in array.shape))


def _type(value: Any) -> Type:
    from coremltools.proto import MIL_pb2

    tensor = value.tensorType
    name = MIL_pb2.DataType.Name(tensor.dataType)
    if tensor.rank < 0:
        return Type(name, None)
    sizes = [each.constant.size if each.WhichOneof("dimension") == "constant" else None for each in tensor.dimensions]
    return Type(name, tuple(sizes))


@dataclass(frozen=True)
class _Reader:
    blobs: Blobs

    def block(self, block: Any) -> Block:
        operations = [self.operation(each) for each in block.operations]
        return Block([each.name for each in block.inputs], operations, [*block.outputs])

    def operation(self, operation: Any) -> Operation:
        inputs: dict[str, list[Name | Value]] = {
            name: [value for binding in argument.arguments for value in self.bound(binding)]
            for name, argument in operation.inputs.items()
        }
        for name, value in operation.attributes.items():
            if name != "name":
                inputs[name] = self.values(value)  # of a const and, until iOS 17, of constexpr operations
        return Operation(
            type=operation.type,
            inputs=inputs,
            outputs=[(each.name, _type(each.type)) for each in operation.outputs],
            blocks=[self.block(each) for each in operation.blocks],
        )

    def bound(self, binding: Any) -> Sequence[Name | Value]:
        return [Name(binding.name)] if binding.WhichOneof("binding") == "name" else self.values(binding.value)

    def values(self, value: Any) -> list[Any]:
        if value.WhichOneof("value") == "blobFileValue":
            return [self.stored(value)]
        immediate = value.immediateValue
        if immediate.WhichOneof("value") == "list":
            return [item for each in immediate.list.values for item in self.values(each)]
        return [_immediate(immediate.tensor, _type(value.type))]

    def stored(self, value: Any) -> Tensor:
        declared = _type(value.type)
        raw = self.blobs.read(value.blobFileValue.fileName, value.blobFileValue.offset, declared.name)
        return _tensor(raw, declared)


def _immediate(tensor: Any, declared: Type) -> Value:
    kind = tensor.WhichOneof("value")
    values: Any = getattr(tensor, kind).values if kind else []
    if kind == "strings":
        return str(values[0])  # tensors of several strings are no operand of an ML Program
    if kind == "bytes":
        return _tensor(np.frombuffer(values, np.uint8), declared)
    return torch.tensor([*values], dtype=declared.dtype).reshape(_sizes(declared))


def _tensor(raw: NDArray[np.uint8], declared: Type) -> Tensor:
    """Bytes as they lie in the file -> a tensor of the declared type and shape."""
    shape = _sizes(declared)
    if declared.name in SUB_BYTE:
        numbers = unpacked(raw, SUB_BYTE[declared.name], int(np.prod(shape)), signed=declared.name == "INT4")
    else:
        numbers = raw.view(_NUMPY[declared.name])
    return torch.from_numpy(np.array(numbers)).to(declared.dtype).reshape(shape)


def _sizes(declared: Type) -> list[int]:
    return [size or 0 for size in declared.shape or ()]
