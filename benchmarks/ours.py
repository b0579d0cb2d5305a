"""planish as one contestant among the peers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from benchmarks.models import Inputs

TARGET = "local"


def planish_int8(model: nn.Module, inputs: Inputs, calibration: Sequence[Inputs], folder: Path) -> Path:
    """Compile ``model`` to INT8 and give the .onnx file of the artifact.

    A pass named by the caller is kept even where INT8 is slower than float, so a row of the tables is always
    INT8, as the peers' rows are.
    """
    import planish

    planish.compile(
        model,
        target=TARGET,
        example_inputs=inputs,
        calibration=calibration,
        passes=[planish.QuantizeInt8()],
        output=folder,
    )
    return folder / "model.onnx"


def prepare() -> None:
    """Once for all compilations, and no part of one: the profile of this machine, and the imports of all passes."""
    from planish.compiler.plugins import registry
    from planish.compiler.targets import find_profile

    find_profile(TARGET)
    _ = registry().passes
