"""planish as one contestant among the peers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from benchmarks.models import Inputs

TARGET = "local"


def planish_int8(model: nn.Module, inputs: Inputs, calibration: Sequence[Inputs], folder: Path) -> Path:
    """Compile ``model`` to INT8 and give the .onnx file of the artifact.

    Passes named by the caller are kept even where INT8 is slower than float, so a row of the tables is
    always INT8, as the peers' rows are.
    """
    import planish

    # ADAPT HERE: how the planned passes are obtained and named explicitly.
    plan = planish.plan(model, target=TARGET, example_inputs=inputs)
    result = planish.compile(
        model,
        target=TARGET,
        example_inputs=inputs,
        calibration=calibration,
        passes=plan.passes,
        output=folder,
    )
    return result.artifact.folder / "model.onnx"
