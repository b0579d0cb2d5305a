"""One training, from its first step or its checkpoint to its last step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch.nn.utils import clip_grad_norm_

from planish.compiler.errors import UserError
from planish.compiler.program import Program
from planish.compiler.progress import Stages
from planish.compiler.training_data import Batch, TrainingData
from planish.passes.training.checkpoint import Checkpoint, identity, optimizer_state, restore_optimizer
from planish.passes.training.history import History, Record
from planish.passes.training.losses import Losses, Place
from planish.passes.training.model import TrainedModel, evaluating, measured, move, runner
from planish.passes.training.optimizers import make_optimizer, make_schedule
from planish.passes.training.settings import Training
from planish.passes.training.streams import read_epoch, seed_step
from planish.passes.training.weights import Average, Tensors, copied, put, tensors_of

Metric = Callable[[Callable[..., Any]], float]
AfterStep = Callable[[Program, float], None]
Prepare = Callable[[Batch], Batch]
SECONDS_BETWEEN_CHECKPOINTS = 60.0
SECONDS_BETWEEN_MESSAGES = 0.25


class Run:
    """What a training is at: ``step``, ``epoch``, and ``index``, the batches read in this epoch."""

    def __init__(
        self, model: TrainedModel, data: TrainingData, training: Training, accelerator: Accelerator, seed: int,
        metric: Metric | None, after_step: AfterStep | None, prepare: Prepare | None, progress: Stages,
    ) -> None:  # fmt: skip
        self.parts, self.data, self.training, self.accelerator, self.seed = model, data, training, accelerator, seed
        self.metric, self.after_step, self.progress = metric, after_step, progress
        self.prepare = prepare
        self.program = model.program
        self.limit = _step_limit(training, data)
        self.step = self.epoch = self.index = 0
        self.seconds = self._seconds_before = 0.0
        self._started = self._saved = self._said = time.perf_counter()
        self.losses, self.history = Losses(), History()

        self._adjust()
        self.current = tensors_of(model)
        self.average = Average(training.averaging, self.current) if training.averaging is not None else None
        self.best: Tensors = {}
        self.best_metric, self.stale = -math.inf, 0

        self.model = accelerator.prepare(model)
        # Not prepared: accelerate's wrapper looks for packages at every step, and only adds loss scaling.
        self.optimizer = make_optimizer(training, model.parameters())
        self.schedule = make_schedule(training, self.optimizer, lambda: self.share)
        if training.checkpoint is not None:
            self._identity = identity(self.program, self.current, training, seed)
            self._resume(Path(training.checkpoint))
            self._adjust()

    # ------------------------------------------------------------------ the loop

    def to_the_end(self) -> None:
        """Take the steps that are left. Each evaluation closes a stretch, the first before any step."""
        if not self.history.records:
            self._evaluate()
        while not self.history.stopped:
            for group in self._groups():
                self._take_step(group)
                if self._bound_reached():
                    break
                every = self.training.evaluate_every
                if every is not None and self.step % every == 0:
                    self._evaluate()
                    if self.history.stopped:
                        break
                self._save_if_due()
            else:
                self.epoch, self.index = self.epoch + 1, 0
                if self.training.evaluate_every is None:
                    self._evaluate()
        if self.history.records[-1].step < self.step:
            self._evaluate()
        self._save()

    def _groups(self) -> Iterator[list[Batch]]:
        """The rest of the epoch, in the batches of one step each."""
        group: list[Batch] = []
        for batch in read_epoch(self.data, self.program, self.seed, self.epoch, self.index):
            group.append(batch)
            if len(group) == self.training.accumulation:
                yield group
                group = []
        if group:
            yield group

    def _take_step(self, group: list[Batch]) -> None:
        seed_step(self.seed, self.step, self.accelerator.process_index)
        rows = sum(batch.rows for batch in group)
        for number, batch in enumerate(group, 1):
            with nullcontext() if number == len(group) else self.accelerator.no_sync(self.model):
                self._backward(batch, rows)
            self.index += 1
        if self.training.clip_norm is not None:
            clip_grad_norm_(self.parts.parameters(), self.training.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.losses.steps += 1
        self.seconds = self._agreed_seconds()
        self.schedule.step()
        self._adjust()
        if self.average is not None:
            self.average.update()
        self._say()

    def _adjust(self) -> None:
        if self.after_step is not None:
            with torch.no_grad():
                self.after_step(self.program, self.share)

    def _backward(self, batch: Batch, rows: int) -> None:
        """Gradients of ``batch``, whose loss counts as its share of the ``rows`` of the step."""
        own = self._own_part(batch)
        share = own.rows * self.accelerator.num_processes / rows
        terms = self.model(own)
        first, *others = terms.values()
        loss = sum(others, first)
        (loss if share == 1 else loss * share).backward()  # accelerate's only scales losses of fp16
        self.losses.add(terms, loss, share, Place(self.step, self.epoch, self.index, own))

    def _own_part(self, batch: Batch) -> Batch:
        """The rows that this process trains on, on its device."""
        processes, device = self.accelerator.num_processes, self.accelerator.device
        if processes > 1:
            if batch.rows < processes:
                raise UserError(
                    f"Give the loader batches of at least {processes} rows, one a process (drop_last=True drops a "
                    f"smaller last one): batch {self.index} of epoch {self.epoch} has {batch.rows}."
                )
            batch = batch.part(self.accelerator.process_index, processes)
        if device.type != "cpu":
            batch = batch.map_tensors(lambda leaf: leaf.to(device, non_blocking=True))
        return batch if self.prepare is None else self.prepare(batch)

    # ------------------------------------------------------------------ how far

    @property
    def share(self) -> float:
        """How much of the training is done, in 0..1."""
        shares = [self.step / self.limit] if self.limit is not None else []
        if self.training.minutes is not None:
            shares.append(self.seconds / (60 * self.training.minutes))
        return min(1.0, max(shares))

    def _bound_reached(self) -> bool:
        if self.limit is not None and self.step >= self.limit:
            self.history.stopped = "all steps taken"
        elif self.training.minutes is not None and self.seconds >= 60 * self.training.minutes:
            self.history.stopped = f"{self.training.minutes:g} minutes are over"
        return bool(self.history.stopped)

    def _agreed_seconds(self) -> float:
        """Seconds of training so far; where they decide something, all processes take those of the first."""
        seconds = self._seconds_before + time.perf_counter() - self._started
        if self.training.minutes is None or self.accelerator.num_processes == 1:
            return seconds
        return float(broadcast(torch.tensor(seconds, device=self.accelerator.device)))

    def _say(self) -> None:
        now = time.perf_counter()
        if now - self._said < SECONDS_BETWEEN_MESSAGES or not self.accelerator.is_main_process:
            return
        self._said = now
        metric = f", best metric {self.best_metric:.4f}" if self.best else ""
        told = f"training, step {self.step} in epoch {self.epoch}: {self.losses}{metric}"
        self.progress.say(told, self.share)

    # ------------------------------------------------------------------ the metric

    def _evaluate(self) -> None:
        """Close a stretch: its losses, the metric, the best weights so far, and whether patience has run out."""
        self.losses.check()
        means = {
            name: float(self.accelerator.reduce(total / self.losses.steps, "mean"))
            for name, total in self.losses.sums.items()
        }
        self.losses.clear()
        value = None if self.metric is None else self._score(self.metric)
        if value is not None and self.training.patience is not None and self.stale >= self.training.patience:
            self.history.stopped = self.history.stopped or f"no better metric in {self.stale} evaluations"
        self.history.records.append(Record(self.step, self.epoch, self.seconds, means, value))

    def _score(self, metric: Metric) -> float:
        """The metric of what would be returned now; the weights are kept if it is the best so far."""
        with ExitStack() as stack:
            if self.accelerator.num_processes > 1:
                for buffer in self.parts.buffers():
                    broadcast(buffer)
            if self.average is not None:
                stack.enter_context(self.average.applied())
            stack.enter_context(evaluating(self.program, self.training.frozen_statistics))
            value = measured(metric, runner(self.program, self.accelerator.device))
            if value > self.best_metric:
                self.best, self.best_metric, self.stale = copied(self.current), value, 0
                self.history.best = self.step
            else:
                self.stale += 1
        return value

    def result(self) -> Program:
        """The Program with the weights that are kept."""
        if self.best:
            put(self.best, self.current)
        elif self.average is not None:
            put(self.average.tensors, self.current)
        for parameter in self.parts.parameters():
            parameter.grad = None
        move(self.program, torch.device("cpu"))
        return self.program.eval()

    # ------------------------------------------------------------------ checkpoints

    def _save_if_due(self) -> None:
        every, now = self.training.checkpoint_every, time.perf_counter()
        if now - self._saved > SECONDS_BETWEEN_CHECKPOINTS if every is None else self.step % every == 0:
            self._save()
            self._saved = now

    def _save(self) -> None:
        """Write what the training is at; only the first process does."""
        self.losses.check()
        self.history.steps, self.history.seconds = self.step, self.seconds
        if self.training.checkpoint is None or not self.accelerator.is_main_process:
            return
        tensors, optimizer = optimizer_state(self.optimizer)
        average = self.average.tensors if self.average is not None else {}
        groups = {"model": self.current, "average": average, "best": self.best, "optimizer": tensors}
        data = {
            "identity": self._identity,
            "position": [self.step, self.epoch, self.index],
            "seconds": self.seconds,
            "losses": [self.losses.steps, {name: float(total) for name, total in self.losses.sums.items()}],
            "averaged": self.average.count if self.average is not None else 0,
            "best": [self.best_metric if self.best else None, self.stale],
            "schedule": self._schedule_state(),
            "optimizer": optimizer,
            "history": self.history.plain(),
        }
        Checkpoint(groups, data).write(Path(self.training.checkpoint))

    def _schedule_state(self) -> dict[str, Any]:
        try:
            plain: dict[str, Any] = json.loads(json.dumps(self.schedule.state_dict()))
        except TypeError as failure:
            raise UserError(
                f"Leave out Training(checkpoint=…), or choose another schedule: the state of "
                f"{type(self.schedule).__name__} cannot be stored as plain data ({failure})."
            ) from failure
        return plain

    def _resume(self, folder: Path) -> None:
        found = Checkpoint.read(folder)
        if found is None:
            return
        found.demand(self._identity, folder)
        data = found.data
        put(found.tensors["model"], self.current)
        if self.average is not None:
            self.average.tensors, self.average.count = dict(found.tensors["average"]), data["averaged"]
        self.best = dict(found.tensors.get("best", {}))
        if self.best:
            self.best_metric, self.stale = data["best"]
        self.step, self.epoch, self.index = data["position"]
        self.seconds = self._seconds_before = data["seconds"]
        self.losses.restore(*data["losses"])
        restore_optimizer(self.optimizer, found.tensors.get("optimizer", {}), data["optimizer"])
        self.schedule.load_state_dict(data["schedule"])
        self.history = History.of(data["history"])


def _step_limit(training: Training, data: TrainingData) -> int | None:
    limits = [] if training.steps is None else [training.steps]
    if training.epochs is not None:
        limits.append(math.ceil(training.epochs * math.ceil(len(data) / training.accumulation)))
    return min(limits, default=None)
