"""One run of ``Distill``: its teacher, its objective for each student, and what it has to say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from planish.compiler.contracts import Context
from planish.compiler.errors import UserError
from planish.compiler.program import Program
from planish.compiler.training_data import Batch
from planish.passes.distill.blend import blended
from planish.passes.distill.cache import AnyTeacher, CachedTeacher
from planish.passes.distill.diagnosis import diagnose
from planish.passes.distill.objective import Lessons
from planish.passes.distill.taps import tapped, untapped
from planish.passes.distill.teacher import Teacher, Teachers
from planish.passes.training.fit import Trained, fit
from planish.passes.training.labels import IGNORED
from planish.passes.training.model import Penalty, computes_bf16
from planish.passes.training.recover import training_data
from planish.passes.training.run import AfterStep
from planish.passes.training.settings import Training
from planish.passes.training.streams import generators_kept

if TYPE_CHECKING:
    from planish.passes.distill.distill import Distill


class Session:
    def __init__(self, settings: Distill, program: Program, context: Context) -> None:
        self.settings, self.context = settings, context
        self.data = training_data(context)
        with generators_kept(self.data):
            self.first: Batch = next(self.data.batches(program))
        self.teacher = self._make_teacher(program)

    def _make_teacher(self, program: Program) -> AnyTeacher | None:
        settings = self.settings
        if not any(loss.needs_teacher for loss in settings.losses) and not settings.curriculum:
            return None
        choices = (settings.teacher, self.context.teacher, self.context.original, program)
        given = next(choice for choice in choices if choice is not None)
        bf16 = settings.training.precision == "bf16" or (
            settings.training.precision == "auto" and computes_bf16(torch.device("cpu"))
        )
        several = given if isinstance(given, (list, tuple)) else [given]
        if not several:
            raise UserError("Pass at least one teacher: the list is empty.")
        teachers = [Teacher(each, program.example_inputs, bf16) for each in several]
        teacher: AnyTeacher
        teacher = teachers[0] if len(teachers) == 1 else Teachers(teachers, settings.mixing, IGNORED)
        if settings.cache is not None:
            teacher = CachedTeacher(teacher, settings.cache, settings.cache_top_k)
        return teacher

    def fit(
        self, program: Program, training: Training, *, penalty: Penalty | None = None,
        after_step: AfterStep | None = None,
    ) -> Trained:  # fmt: skip
        """``program`` trained with the losses of these settings."""
        context = self.context
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)  # projectors
            lessons = Lessons(self.settings.losses, self.teacher, program, self.first, self.settings.curriculum)

        def after(running: Program, share: float) -> None:
            lessons.share = share
            if after_step is not None:
                after_step(running, share)

        student = tapped(program, lessons.points)
        metric = context.metric
        trained = fit(
            student, self.data, lessons, training, penalty=penalty, after_step=after, seed=context.seed,
            metric=metric if not lessons.points or metric is None else lambda run: metric(_first_of(run)),
            progress=context.progress, prepare=blended if self.settings.blended else None,
        )  # fmt: skip
        if not lessons.points:
            return trained
        return Trained(untapped(trained.program, program), trained.history)

    def diagnose(self, program: Program) -> None:
        if self.settings.diagnosis and self.teacher is not None:
            found = diagnose(self.teacher, program, self.data, self.context.seed, self.context.progress)
            self.context.notes.extend(found.sentences())

    def report(self) -> None:
        if isinstance(self.teacher, CachedTeacher):
            self.context.notes.append(self.teacher.told())


def _first_of(run: Any) -> Any:
    return lambda *args, **kwargs: run(*args, **kwargs)[0]
