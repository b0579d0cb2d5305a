"""Teachers, students and passes that lose something, for the tests of distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import planish
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context, Pass, Proposal, Situation, Stage
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, set_tensor
from planish.compiler.training_data import TrainingData
from planish.passes.distill.distill import Distill
from planish.passes.training.settings import Training
from tests.passes.nets import SCHEME, profile
from tests.passes.training.tasks import CLASSES, FEATURES, accuracy, data, examples

FAST = Training(steps=30, precision="fp32", learning_rate=0.05)

KEEN = Training(steps=80, precision="fp32", optimizer="adamw", learning_rate=0.01, weight_decay=0.0)


@dataclass(frozen=True)
class Forget(Pass):
    """Sets a share of every matrix to zero."""

    name: ClassVar[str] = "forget"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    share: float = 0.5

    def run(self, program: Program, context: Context) -> Program:
        program = program.fork()
        for name, parameter in [*program.graph_module.named_parameters()]:
            if parameter.ndim > 1:
                kept = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)) > self.share
                set_tensor(program.graph_module, name, nn.Parameter(parameter.detach() * kept))
        return program

    @classmethod
    def propose(cls, situation: Situation) -> Proposal | None:
        return Proposal(cls(), "To have something to win back.")


class Mlp(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first, self.second, self.last = (
            nn.Linear(FEATURES, width),
            nn.Linear(width, width),
            nn.Linear(width, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.second(self.first(x).relu()).relu())
        return result


class Sure(nn.Module):
    """A teacher that is right on the task of tests/passes/training/tasks.py, and knows how close the others were."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x[:, :CLASSES]


def student(width: int = 24) -> Program:
    torch.manual_seed(2)
    return planish.trace(Mlp(width), torch.zeros(2, FEATURES))


def context(train: TrainingData | None = None, metric: bool = True, **options: Any) -> Context:
    x, _ = examples()
    calibration = Calibration([Inputs.of(x[:32])], "given")
    score: Callable[..., float] | None = accuracy if metric else None
    made = Context(profile(), SCHEME, calibration, train=data() if train is None else train, metric=score)
    return replace(made, **options)


def distilled(program: Program, settings: Distill, **options: Any) -> tuple[Program, list[str]]:
    """What the pass makes of ``program``, and its notes."""
    given = context(**options)
    return settings.run(program, given), given.notes
