"""planish: a plugin-based, hardware-aware compression compiler for PyTorch.

    result = planish.compile(model, target="jetson-orin")

Names are imported when they are first used: ``planish --help`` and ``import planish`` load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.compiler.artifact import Artifact
    from planish.compiler.contracts import Backend, Budget, Check, Context, Finding, Lowered, Pass, Runner, Stage
    from planish.compiler.driver import check, check_file, compile, load, plan
    from planish.compiler.errors import (
        LoweringError,
        MissingDependency,
        PassError,
        PlanishError,
        PluginError,
        UserError,
        VerificationError,
    )
    from planish.compiler.fleet import Fleet
    from planish.compiler.hardware import HardwareProfile
    from planish.compiler.hookspecs import hookimpl
    from planish.compiler.on_device import build_scripts, import_report
    from planish.compiler.plan import Plan
    from planish.compiler.program import Program
    from planish.compiler.report import Report
    from planish.compiler.result import Result
    from planish.compiler.scheme import QuantizationScheme
    from planish.compiler.trace import trace
    from planish.passes.distill.distill import Distill
    from planish.passes.distill.feature_losses import Features, Layers
    from planish.passes.distill.losses import Decoupled, Dist, Exits, HardLabels, Ranking, SoftTargets, Values
    from planish.passes.drop_blocks import DropBlocks
    from planish.passes.erase_noops import EraseNoOps
    from planish.passes.fold_batch_norm import FoldBatchNorm
    from planish.passes.prune_channels import PruneChannels
    from planish.passes.pruning.schedules import Gradual, GroupLasso
    from planish.passes.quantize_int8 import QuantizeInt8
    from planish.passes.quantize_weights import QuantizeWeights
    from planish.passes.sparsify import Sparsify
    from planish.passes.training.settings import Training

__all__ = [  # noqa: RUF022 - grouped by what one does with them
    # compile
    "compile", "plan", "check", "check_file", "load", "Result", "Fleet", "Artifact", "Report", "Plan", "Budget",
    # on the device
    "build_scripts", "import_report",
    # the IR
    "trace", "Program",
    # passes
    "EraseNoOps", "FoldBatchNorm", "QuantizeInt8", "QuantizeWeights",
    "PruneChannels", "Gradual", "GroupLasso", "DropBlocks", "Sparsify",
    # training
    "Training", "Distill", "SoftTargets", "HardLabels", "Values", "Decoupled", "Dist", "Ranking", "Exits", "Features",
    "Layers",
    # writing plugins
    "Pass", "Stage", "Context", "Backend", "Runner", "Lowered", "Check", "Finding", "QuantizationScheme",
    "HardwareProfile", "hookimpl",
    # errors
    "PlanishError", "UserError", "MissingDependency", "PluginError", "PassError", "LoweringError", "VerificationError",
]  # fmt: skip

_HOMES = {
    "planish.compiler.artifact": ("Artifact",),
    "planish.compiler.contracts": (
        "Backend", "Budget", "Check", "Context", "Finding", "Lowered", "Pass", "Runner", "Stage",
    ),
    "planish.compiler.driver": ("check", "check_file", "compile", "load", "plan"),
    "planish.compiler.errors": (
        "LoweringError", "MissingDependency", "PassError", "PlanishError", "PluginError", "UserError",
        "VerificationError",
    ),
    "planish.compiler.fleet": ("Fleet",),
    "planish.compiler.hardware": ("HardwareProfile",),
    "planish.compiler.hookspecs": ("hookimpl",),
    "planish.compiler.on_device": ("build_scripts", "import_report"),
    "planish.compiler.plan": ("Plan",),
    "planish.compiler.program": ("Program",),
    "planish.compiler.report": ("Report",),
    "planish.compiler.result": ("Result",),
    "planish.compiler.scheme": ("QuantizationScheme",),
    "planish.compiler.trace": ("trace",),
    "planish.passes.distill.distill": ("Distill",),
    "planish.passes.distill.feature_losses": ("Features", "Layers"),
    "planish.passes.distill.losses": ("Decoupled", "Dist", "Exits", "HardLabels", "Ranking", "SoftTargets", "Values"),
    "planish.passes.drop_blocks": ("DropBlocks",),
    "planish.passes.erase_noops": ("EraseNoOps",),
    "planish.passes.fold_batch_norm": ("FoldBatchNorm",),
    "planish.passes.prune_channels": ("PruneChannels",),
    "planish.passes.pruning.schedules": ("Gradual", "GroupLasso"),
    "planish.passes.quantize_int8": ("QuantizeInt8",),
    "planish.passes.quantize_weights": ("QuantizeWeights",),
    "planish.passes.sparsify": ("Sparsify",),
    "planish.passes.training.settings": ("Training",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'planish' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
