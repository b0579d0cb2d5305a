"""What ``planish.compile`` returns for one target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planish.compiler.artifact import Artifact
from planish.compiler.plan import Plan
from planish.compiler.program import Program
from planish.compiler.report import Report


@dataclass(frozen=True)
class Result:
    """The artifact, and what was done for it."""

    artifact: Artifact
    program: Program
    """The rewritten Program, from which the artifact was lowered."""
    plan: Plan
    report: Report

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the artifact: the model's own arguments and output structure, torch tensors in and out."""
        return self.artifact.run(*args, **kwargs)
