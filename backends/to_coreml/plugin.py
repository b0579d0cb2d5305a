"""Registers the Core ML backend; coremltools is imported when a Program is lowered."""

from __future__ import annotations

from planish.compiler.contracts import Backend
from planish.compiler.hookspecs import hookimpl


@hookimpl
def planish_backends() -> list[Backend]:
    from planish.backends.to_coreml.backend import CoreMLBackend

    return [CoreMLBackend()]
