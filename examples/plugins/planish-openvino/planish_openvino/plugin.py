"""What this package adds to planish."""

from __future__ import annotations

from planish.compiler.contracts import Backend
from planish.compiler.hookspecs import hookimpl


@hookimpl
def planish_backends() -> list[Backend]:
    from planish_openvino.backend import OpenVinoBackend

    return [OpenVinoBackend()]
