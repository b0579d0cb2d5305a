"""What the user asks ``planish.compile`` for, whatever the target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from planish.compiler.calibration import readable
from planish.compiler.contracts import Backend, Budget, Pass
from planish.compiler.errors import UserError
from planish.compiler.judge import Metric
from planish.compiler.plan import Plan, as_plan
from planish.compiler.program import Program
from planish.compiler.training_data import TrainingData

Model = nn.Module | ExportedProgram | Program


@dataclass(frozen=True)
class Request:
    """The arguments of ``planish.compile``, checked."""

    model: Model
    example_inputs: Any = None
    data: Iterable[Any] | None = None
    """For calibration; can be read again and again."""
    metric: Metric | None = None
    budget: Budget = field(default_factory=Budget)
    plan: Plan | None = None
    """Instead of the one for the device."""
    backend: str | Backend | None = None
    seed: int = 0
    train: TrainingData | None = None
    teacher: Any = None

    @classmethod
    def of(
        cls, model: Model, example_inputs: Any, calibration: Iterable[Any] | None, metric: Metric | None,
        budget: Budget | None, passes: Plan | Iterable[Pass] | None, backend: str | Backend | None, seed: int,
        train: Iterable[Any] | None, teacher: Any,
    ) -> Request:  # fmt: skip
        """Raises UserError for what can be seen without a look at the model."""
        if budget is not None and not isinstance(budget, Budget):
            raise UserError(f"Pass planish.Budget(…) as budget, not {budget!r}.")
        return cls(
            model,
            example_inputs,
            None if calibration is None else readable(calibration),
            metric,
            budget or Budget(),
            None if passes is None else as_plan(passes),
            backend,
            seed,
            None if train is None else TrainingData(train),
            teacher,
        )

    @property
    def name(self) -> str:
        return type(self.model).__name__ if isinstance(self.model, nn.Module) else "program"
