"""planish: a plugin-based, hardware-aware compression compiler for PyTorch.

result = planish.compile(model, target="jetson-orin")
"""

from planish.compiler.artifact import Artifact
from planish.compiler.contracts import Backend, Budget, Check, Context, Finding, Lowered, Pass, Runner, Stage
from planish.compiler.driver import Result, check, compile, load, plan
from planish.compiler.errors import (
    LoweringError,
    MissingDependency,
    PassError,
    PlanishError,
    PluginError,
    UserError,
    VerificationError,
)
from planish.compiler.hardware import HardwareProfile
from planish.compiler.hookspecs import hookimpl
from planish.compiler.plan import Plan
from planish.compiler.program import Program
from planish.compiler.report import Report
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.trace import trace
from planish.passes.erase_noops import EraseNoOps
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.quantize_int8 import QuantizeInt8

__all__ = [  # noqa: RUF022 - grouped by what one does with them
    # compile
    "compile", "plan", "check", "load", "Result", "Artifact", "Report", "Plan", "Budget",
    # the IR
    "trace", "Program",
    # passes
    "EraseNoOps", "FoldBatchNorm", "QuantizeInt8",
    # writing plugins
    "Pass", "Stage", "Context", "Backend", "Runner", "Lowered", "Check", "Finding", "QuantizationScheme",
    "HardwareProfile", "hookimpl",
    # errors
    "PlanishError", "UserError", "MissingDependency", "PluginError", "PassError", "LoweringError", "VerificationError",
]  # fmt: skip
