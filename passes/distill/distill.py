"""Distillation as a pass: it wraps what it recovers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, ClassVar

import torch

from planish.compiler.contracts import Context, Pass, Proposal, Situation, Stage
from planish.compiler.errors import PassError, UserError
from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.passes.distill.feature_losses import AnyLoss
from planish.passes.distill.losses import HardLabels, Loss, SoftTargets
from planish.passes.training.settings import Training

aten = torch.ops.aten


@dataclass(frozen=True)
class Distill(Pass):
    """Train a student to imitate a teacher (arXiv:1503.02531), after the passes that it wraps.

    1. Passes in ``inner`` up to sparsity run; what they train by themselves, they train with these losses.
    2. The Program is trained on the ``train`` data of ``planish.compile``.
    3. The other passes in ``inner`` (folding, INT8) run.

    ``teacher``: anything callable as the model is, or several; else the ``teacher`` of ``planish.compile``; else the
    model before any pass. A saved plan does not hold it.
    ``losses``: their weighted sum is minimized (``losses.py``, ``feature_losses.py``).
    ``training``: bounds, optimizer, precision; ``epochs``, ``steps`` and ``minutes`` are short for its bounds.
    ``mixing``: of several teachers: ``mean``, ``confidence`` (row by row, arXiv:2201.00007), or a weight for each.
    ``curriculum``: share of the training that begins with the rows which the teacher finds easy (half of each batch)
    and ends with all of them.
    ``blended``: the rows of each batch are mixed with each other, and the teacher is asked about the mixtures
    (``blend.py``), which have no labels. Worth most where there is little data.
    ``cache``: folder in which the teacher's outputs are kept, so that each row is computed once.
    ``cache_top_k``: only so many classes of each row of scores are kept.
    ``diagnosis``: whether to look, before training, at what the teacher is worth on the data; in the Report.
    """

    name: ClassVar[str] = "distill"
    stage: ClassVar[Stage] = Stage.RECOVERY

    teacher: Any = field(default=None, compare=False, repr=False, metadata={"saved": False})
    losses: Sequence[AnyLoss | Loss] = (SoftTargets(temperature=4.0, weight=0.7), HardLabels(weight=0.3))
    inner: Sequence[Pass] = ()
    training: Training = field(default_factory=lambda: Training(epochs=10))
    mixing: str | tuple[float, ...] = "mean"
    curriculum: float | None = None
    blended: bool = False
    cache: str | None = None
    cache_top_k: int | None = None
    diagnosis: bool = True
    epochs: InitVar[float | None] = None
    steps: InitVar[int | None] = None
    minutes: InitVar[float | None] = None

    def __post_init__(self, epochs: float | None, steps: int | None, minutes: float | None) -> None:
        for name in ("losses", "inner"):
            given = getattr(self, name)
            object.__setattr__(self, name, tuple(given) if isinstance(given, (list, tuple)) else (given,))
        if epochs is not None or steps is not None or minutes is not None:
            bounded = replace(self.training, epochs=epochs, steps=steps, minutes=minutes)
            object.__setattr__(self, "training", bounded)
        for loss in self.losses:
            if not isinstance(loss, Loss):
                raise UserError(f"Pass losses such as SoftTargets() in Distill(losses=…); got {loss!r}.")
        for inner in self.inner:
            if not isinstance(inner, Pass):
                raise UserError(f"Pass passes in Distill(inner=…); got {inner!r}.")
        if not any(loss.weight for loss in self.losses):
            raise UserError("Give Distill(losses=…) at least one loss with a weight above 0.")
        if self.blended:
            self._demand_no_labels()
        if isinstance(self.mixing, str) and self.mixing not in ("mean", "confidence"):
            raise UserError(f"Give Distill(mixing=…) 'mean', 'confidence' or weights, not {self.mixing!r}.")
        if self.curriculum is not None and not 0 < self.curriculum <= 1:
            raise UserError(f"Give Distill(curriculum=…) a share above 0 and up to 1, not {self.curriculum!r}.")

    def _demand_no_labels(self) -> None:
        for loss in self.losses:
            if loss.weight and loss.reads_labels:
                raise UserError(f"Leave {type(loss).__name__} out of Distill(blended=True): mixtures have no labels.")
        if self.cache is not None or self.curriculum is not None:
            name = "cache" if self.cache is not None else "curriculum"
            raise UserError(f"Leave {name} out of Distill(blended=True): every mixture is seen once.")

    @classmethod
    def propose(cls, situation: Situation) -> Proposal | None:
        lossy = tuple(each for each in situation.planned if not each.exact and each.stage < cls.stage)
        if not lossy:
            return None
        names = ", ".join(each.name for each in lossy)
        if not situation.trains:
            return Proposal(None, f"There is no train data to win back what {names} loses.")
        proposed = cls(inner=lossy, training=_training_for(situation.program))
        return Proposal(proposed, f"Wins back what {names} loses, by imitating the model as it was.", lossy)

    def run(self, program: Program, context: Context) -> Program:
        from planish.passes.distill.session import Session
        from planish.passes.training.recover import recover, training_data

        training_data(context)  # told before any work
        session = Session(self, program, context)
        context = replace(context, fit=session.fit)
        done: set[type[Pass]] = set()
        for inner in self.inner:
            if inner.stage < self.stage:
                program = _applied(inner, program, context, done)
        session.diagnose(program)
        program = recover(program, context, self.training.part("distill")).program
        for inner in self.inner:
            if inner.stage >= self.stage:
                program = _applied(inner, program, context, done)
        session.report()
        return program


def _applied(inner: Pass, program: Program, context: Context, done: set[type[Pass]]) -> Program:
    """What ``inner`` makes of ``program``, after the passes that it requires."""
    for kind in inner.requires:
        if kind not in done:
            program = _applied(kind(), program, context, done)
    try:
        program = inner.run(program, context)
    except PassError as failure:
        failure.component = failure.component or inner.name
        raise
    verify(program, inner.name)
    done.add(type(inner))
    return program


def _training_for(program: Program) -> Training:
    """SGD where batch norms keep the scale; Adam, with smaller steps, where they do not (transformers, recurrent)."""
    if any(program.calls(aten.batch_norm.default)):
        return Training(epochs=10, optimizer="sgd", learning_rate=0.02, warmup=0.02)
    return Training(epochs=10, optimizer="adamw", learning_rate=2e-4, weight_decay=0.01, warmup=0.05, clip_norm=1.0)
