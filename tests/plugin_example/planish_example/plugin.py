"""What this package adds to planish."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from planish.compiler.contracts import Backend, Pass
from planish.compiler.coupling.inference import Rule
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


@hookimpl
def planish_coupling_rules() -> Mapping[Any, Rule]:
    from planish_example.soft_threshold import soft_threshold_rule

    return {torch.ops.planish_example.soft_threshold: soft_threshold_rule}
