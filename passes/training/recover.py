"""What a pass calls that trains what it made: with the losses of the pass around it, or on labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planish.compiler.contracts import Context
from planish.compiler.errors import UserError
from planish.compiler.program import Program, get_attribute
from planish.compiler.training_data import TrainingData
from planish.passes.training.labels import task_loss
from planish.passes.training.settings import Training

if TYPE_CHECKING:
    from planish.passes.training.fit import Trained
    from planish.passes.training.model import Penalty
    from planish.passes.training.run import AfterStep

SPARSE = "planish_sparse"
"""Key of the ``meta`` of a node that reads a sparse weight; forks and copies of a Program have it too."""


def recover(
    program: Program,
    context: Context,
    training: Training,
    *,
    penalty: Penalty | None = None,
    after_step: AfterStep | None = None,
) -> Trained:
    """Train a copy of ``program`` on the compilation's training data, with its metric, seed and display.

    Weights that a pass has marked as ``SPARSE`` keep their zeros, whatever else ``after_step`` does.

    Inside of ``Distill(inner=…)`` with the losses of that, elsewhere on labels (``task_loss``). Raises UserError where
    no training data was given, and for what ``fit`` raises.
    """
    from planish.passes.training.fit import fit  # accelerate takes a while to import

    after_step = _in_turn(after_step, zeros_kept(program))
    if context.fit is not None:
        trained: Trained = context.fit(program, training, penalty=penalty, after_step=after_step)
    else:
        trained = fit(
            program,
            training_data(context),
            lambda outputs, batch: {"labels": task_loss(outputs, batch.labels)},
            training,
            metric=context.metric,
            penalty=penalty,
            after_step=after_step,
            seed=context.seed,
            progress=context.progress,
        )
    context.notes.append(f"Trained {trained.history}.")
    return trained


def training_data(context: Context) -> TrainingData:
    if context.train is None:
        raise UserError("Pass train=loader to planish.compile: there is no data to train on.")
    return context.train


def zeros_kept(program: Program) -> AfterStep | None:
    """An ``after_step`` that keeps the zeros of all weights that were made sparse; None where none was."""
    from planish.passes.training.model import masked

    marked = [str(node.target) for node in program.graph.nodes if node.meta.get(SPARSE)]
    return (
        masked({name: get_attribute(program.graph_module, name).detach() != 0 for name in marked}) if marked else None
    )


def _in_turn(*steps: AfterStep | None) -> AfterStep | None:
    given = [step for step in steps if step is not None]
    if not given:
        return None

    def all_of_them(program: Program, share: float) -> None:
        for step in given:
            step(program, share)

    return all_of_them
