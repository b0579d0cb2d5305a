"""Train a Program: the function that every pass calls which has to train."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from planish.compiler.errors import UserError
from planish.compiler.program import Program
from planish.compiler.progress import Stages, stages
from planish.compiler.training_data import TrainingData
from planish.passes.training.history import History
from planish.passes.training.model import (
    Objective,
    Penalty,
    TrainedModel,
    computes_bf16,
    demand_compiler,
    move,
    set_training,
)
from planish.passes.training.run import AfterStep, Metric, Prepare, Run
from planish.passes.training.settings import Training
from planish.passes.training.streams import generators_kept


@dataclass(frozen=True)
class Trained:
    program: Program
    """In evaluation mode, on the CPU, with tensors of its own."""
    history: History


def fit(
    program: Program,
    data: TrainingData,
    objective: Objective,
    training: Training,
    *,
    metric: Metric | None = None,
    penalty: Penalty | None = None,
    after_step: AfterStep | None = None,
    prepare: Prepare | None = None,
    seed: int = 0,
    progress: Stages | None = None,
) -> Trained:
    """Train a copy of ``program`` and return it; ``program`` itself is left as it was.

    Args:
        program: what is trained; parameters that ask for no gradient stay, unless none asks.
        data: batches; each process of ``accelerate launch`` trains on its share of the rows of each.
        objective: ``(outputs, batch) -> loss terms``; an ``nn.Module`` is trained along.
        training: bounds, optimizer, precision, checkpoints.
        metric: gets ``run(*inputs) -> outputs``, returns a float, higher is better. With it the best weights are
            returned, those before training included; without it the last ones.
        penalty: loss terms of the weights, from the Program in training.
        after_step: called with the Program in training and the share of the training that is done (0..1), after
            every step. It writes into tensors in place, and depends on nothing else (see ``masked``).
        prepare: what is made of each batch before model and objective see it; it draws from torch alone.
        seed: for all that is drawn, where ``training`` has none.
        progress: display of the compilation; one of its own if left out.

    Raises:
        UserError: data that does not fit, a loss that is not finite (with step and batch), a metric that raises, a
            checkpoint of another training.
    """
    with ExitStack() as stack:
        stack.enter_context(generators_kept(data))
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True))
        stack.enter_context(torch.enable_grad())
        shown = progress or stack.enter_context(stages().shown())
        accelerator = _accelerator()
        model = _model(program, objective, penalty, training, accelerator.device)
        set_training(model.program, training.frozen_statistics)
        own_seed = seed if training.seed is None else training.seed
        run = Run(model, data, training, accelerator, own_seed, metric, after_step, prepare, shown)
        run.to_the_end()
        return Trained(run.result(), run.history)


def _accelerator() -> Accelerator:
    """Devices and processes as ``accelerate launch`` (or their absence) says."""
    made = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    if made.mixed_precision != "no":
        raise UserError("Launch without --mixed_precision: Training(precision=…) decides it.")
    return made


def _model(
    program: Program, objective: Objective, penalty: Penalty | None, training: Training, device: torch.device
) -> TrainedModel:
    """A copy of ``program`` on ``device``, with what is trained along."""
    program = program.copy()
    parameters = [parameter for parameter in program.parameters() if parameter.is_floating_point()]
    if not any(parameter.requires_grad for parameter in parameters):  # a model loaded for inference
        for parameter in parameters:
            parameter.requires_grad_()
    move(program, device)
    bf16 = computes_bf16(device) if training.precision == "auto" else training.precision == "bf16"
    if training.compiled:
        demand_compiler(device)
    return TrainedModel(program, objective, penalty, bf16, training.compiled).to(device)
