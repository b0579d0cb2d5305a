"""``weight.bin``: where the large constants of a package lie.

https://github.com/apple/coremltools/blob/main/mlmodel/src/MILBlob/Blob/StorageFormat.hpp
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planish.compiler.errors import UserError

_METADATA = struct.Struct("<IIQQ")  # sentinel, type, size in bytes, offset of the data
_SENTINEL = 0xDEADBEEF
# BlobDataType.hpp
_TYPES = {
    1: "FLOAT16", 2: "FLOAT32", 3: "UINT8", 4: "INT8", 5: "BFLOAT16", 6: "INT16", 7: "UINT16", 8: "INT4", 9: "UINT1",
    10: "UINT2", 11: "UINT4", 12: "UINT3", 13: "UINT6", 14: "INT32", 15: "UINT32",
}  # fmt: skip


@dataclass(frozen=True)
class Blobs:
    """The weight files in ``folder``, mapped into memory when they are first read."""

    folder: Path
    _files: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def read(self, reference: str, offset: int, type_name: str) -> NDArray[np.uint8]:
        """The bytes of one constant, as they lie there. Raises UserError if the file does not hold it."""
        name = reference.split("/")[-1]
        if name not in self._files:
            try:
                self._files[name] = np.memmap(self.folder / name, np.uint8, mode="r")
            except (OSError, ValueError) as failure:
                raise UserError(f"Compile again: {self.folder / name} cannot be read ({failure}).") from failure
        file = self._files[name]
        header = file[offset : offset + _METADATA.size].tobytes()
        sentinel, kind, size, start = _METADATA.unpack(header) if len(header) == _METADATA.size else (0, 0, 0, 0)
        if sentinel != _SENTINEL or _TYPES.get(kind) != type_name or start + size > file.size:
            raise UserError(f"Compile again: {self.folder / name} is damaged at byte {offset}.")
        return file[start : start + size]


def unpacked(raw: NDArray[np.uint8], bits: int, count: int, signed: bool) -> NDArray[np.integer[Any]]:
    """``count`` numbers of ``bits`` bits, the lowest bits of each byte first."""
    ones = np.unpackbits(np.ascontiguousarray(raw), bitorder="little")[: count * bits].reshape(count, bits)
    numbers: NDArray[np.integer[Any]] = (ones << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if not signed:
        return numbers
    return np.where(numbers >= 1 << (bits - 1), numbers.astype(np.int16) - (1 << bits), numbers).astype(np.int8)
