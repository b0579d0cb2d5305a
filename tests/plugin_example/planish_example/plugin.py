"""What this package adds to planish."""

from __future__ import annotations

from pathlib import Path

from planish.compiler.contracts import Backend, Pass
from planish.compiler.hookspecs import hookimpl


@hookimpl
def planish_passes() -> list[type[Pass]]:
    from planish_example.round_weights import RoundWeights

    return [RoundWeights]


@hookimpl
def planish_backends() -> list[Backend]:
    from planish_example.torch_archive import TorchArchive

    return [TorchArchive()]


@hookimpl
def planish_profiles() -> list[Path]:
    return [Path(__file__).with_name("example-board.toml")]
