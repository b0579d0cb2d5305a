"""Registers the TensorRT backend."""

from __future__ import annotations

from planish.compiler.contracts import Backend
from planish.compiler.hookspecs import hookimpl


@hookimpl
def planish_backends() -> list[Backend]:
    from planish.backends.to_tensorrt.backend import TensorRtBackend

    return [TensorRtBackend()]
