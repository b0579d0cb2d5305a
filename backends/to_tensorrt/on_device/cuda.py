"""The few calls of the CUDA runtime that running an engine takes, without a package for it."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from pathlib import Path

from machine import Stop

_TO_DEVICE, _TO_HOST = 1, 2
"""cudaMemcpyKind: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html"""
_OUT_OF_MEMORY = 2
_PLACES = (
    "libcudart.so",
    "libcudart.so.13",
    "libcudart.so.12",
    "libcudart.so.11.0",
    "/usr/local/cuda/lib64/libcudart.so",
)


class Cuda:
    """The CUDA runtime; every call that fails raises Stop."""

    def __init__(self) -> None:
        self._library = _load()
        self.stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(self.stream))

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer.value or 0

    def free(self, pointer: int) -> None:
        self._call("cudaFree", ctypes.c_void_p(pointer))

    def to_device(self, pointer: int, data: bytes) -> None:
        self._call("cudaMemcpy", ctypes.c_void_p(pointer), data, ctypes.c_size_t(len(data)), _TO_DEVICE)

    def to_host(self, pointer: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        self._call("cudaMemcpy", buffer, ctypes.c_void_p(pointer), ctypes.c_size_t(size), _TO_HOST)
        return buffer.raw

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def event(self) -> ctypes.c_void_p:
        event = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(event))
        return event

    def record(self, event: ctypes.c_void_p) -> None:
        self._call("cudaEventRecord", event, self.stream)

    def elapsed_ms(self, start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        time = ctypes.c_float()
        self._call("cudaEventSynchronize", end)
        self._call("cudaEventElapsedTime", ctypes.byref(time), start, end)
        return time.value

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise Stop("the GPU's memory is used up: close other programs and run this again.")
        if code:
            tell = self._library.cudaGetErrorString
            tell.restype = ctypes.c_char_p
            raise Stop(f"CUDA failed in {name}: {tell(code).decode()}. Does nvidia-smi or tegrastats see the GPU?")


def _load() -> ctypes.CDLL:
    beside = [str(file) for folder in sys.path for file in Path(folder).glob("nvidia/*/lib/libcudart.so.*")]  # by pip
    found: list[str | None] = [*_PLACES, ctypes.util.find_library("cudart"), *beside]
    for name in found:
        try:
            if name:
                return ctypes.CDLL(name)
        except OSError:
            continue
    raise Stop("the CUDA runtime (libcudart.so) was not found: install cuda-cudart, or set LD_LIBRARY_PATH to it.")
