"""Training that is killed and started again ends with the weights, to the bit, of training that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from planish.compiler.errors import UserError
from planish.compiler.training_data import Batch, TrainingData
from planish.passes.training.checkpoint import FILE
from planish.passes.training.fit import Trained, fit
from planish.passes.training.settings import Training
from tests.conftest import ROOT
from tests.passes.training.tasks import accuracy, assert_same_tensors, cross_entropy, data, examples, program

BASE = partial(Training, epochs=4, precision="fp32", learning_rate=0.05, checkpoint_every=1)


class Killed(Exception):
    pass


def killed_at(step: int, objective: Callable[..., Any]) -> Callable[..., Any]:
    """``objective``, which dies in that step (after the checkpoint of the step before)."""
    calls = 0

    def dying(outputs: Any, batch: Batch) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls > step:
            raise Killed
        return dict(objective(outputs, batch))

    return dying


def interrupted(training: Training, steps: tuple[int, ...], source: TrainingData, **options: Any) -> Trained:
    """Training that dies ``steps`` into each of its first runs, and ends in the last."""
    for step in steps:
        with pytest.raises(Killed):
            fit(program(), source, killed_at(step, cross_entropy), training, **options)
    return fit(program(), source, cross_entropy, training, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adamw", "learning_rate": 0.01},
        {"averaging": 0.9},
        {"clip_norm": 0.1, "warmup": 0.2, "schedule": "linear"},
        {"evaluate_every": 5, "patience": 3},
        {"schedule": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 5)},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
@pytest.mark.parametrize("metric", [None, accuracy])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, options: dict[str, Any], metric: Any
) -> None:
    training = BASE(**{"learning_rate": 0.05, **options, "checkpoint": str(tmp_path)})
    resumed = interrupted(training, (3, 6, 8), data(), metric=metric)  # within an epoch, at its end, in the next
    whole = fit(program(), data(), cross_entropy, BASE(**{"learning_rate": 0.05, **options}), metric=metric)
    assert_same_tensors(resumed.program, whole.program)
    assert [record.losses for record in resumed.history.records] == [record.losses for record in whole.history.records]
    assert [record.metric for record in resumed.history.records] == [record.metric for record in whole.history.records]
    assert (resumed.history.best, resumed.history.stopped) == (whole.history.best, whole.history.stopped)


def test_accumulated_batches_are_resumed_between_steps(tmp_path: Path) -> None:
    training = BASE(accumulation=4, checkpoint=str(tmp_path))  # six batches: a step of four, a step of two
    resumed = interrupted(training, (5, 6), data())  # in the second step of the first epoch
    assert_same_tensors(resumed.program, fit(program(), data(), cross_entropy, BASE(accumulation=4)).program)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Noise from all three global generators, as augmentations draw it."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        import random

        import numpy as np

        x, y = examples(96)
        return x[index] + torch.randn(20) * random.random() * np.random.rand(), y[index]


@pytest.mark.parametrize("own_generator", [False, True])
def test_augmented_data_is_drawn_again_as_it_was(tmp_path: Path, own_generator: bool) -> None:
    def source() -> TrainingData:
        generator = torch.Generator().manual_seed(7) if own_generator else None
        return TrainingData(DataLoader(Augmented(), batch_size=16, shuffle=True, generator=generator))

    resumed = interrupted(BASE(checkpoint=str(tmp_path)), (4, 5), source())
    assert_same_tensors(resumed.program, fit(program(), source(), cross_entropy, BASE()).program)


def test_a_companion_is_resumed_too(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self, dies_after: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.left = dies_after

        def forward(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return {"hard": F.cross_entropy(outputs * self.scale, batch.labels)}

    with pytest.raises(Killed):
        fit(program(), data(), Scaled(9), BASE(checkpoint=str(tmp_path)))
    resumed, whole = Scaled(100), Scaled(100)
    again = fit(program(), data(), resumed, BASE(checkpoint=str(tmp_path)))
    assert_same_tensors(again.program, fit(program(), data(), whole, BASE()).program)
    assert torch.equal(resumed.scale, whole.scale)


def test_a_training_that_had_ended_is_returned_without_a_step(tmp_path: Path) -> None:
    training = BASE(checkpoint=str(tmp_path))
    first = fit(program(), data(), cross_entropy, training, metric=accuracy)
    again = fit(program(), data(), killed_at(0, cross_entropy), training, metric=accuracy)
    assert_same_tensors(first.program, again.program)
    assert again.history == first.history


WORKER = """
import sys
from functools import partial
from planish.passes.training.fit import fit
from planish.passes.training.settings import Training
from tests.passes.training.tasks import cross_entropy, data, program, accuracy
import safetensors.torch
training = Training(epochs=30, precision="fp32", learning_rate=0.05, averaging=0.9, checkpoint_every=1,
                    checkpoint=sys.argv[1] or None)
trained = fit(program(), data(), cross_entropy, training, metric=accuracy)
safetensors.torch.save_file({k: v.contiguous() for k, v in trained.program.state_dict().items()}, sys.argv[2])
"""


def start(checkpoint: str, result: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, checkpoint, str(result)], cwd=ROOT, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_kill_9_at_a_random_moment_changes_nothing(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    wait = int.from_bytes(os.urandom(2)) / 2**16  # no seed: another moment in every run
    for _ in range(3):
        running = start(str(checkpoint), tmp_path / "resumed.safetensors")
        while not (checkpoint / FILE).exists() and running.poll() is None:
            time.sleep(0.02)
        time.sleep(wait)
        running.send_signal(signal.SIGKILL)
        running.wait()
    for folder, name in ((str(checkpoint), "resumed"), ("", "whole")):
        done = start(folder, tmp_path / f"{name}.safetensors")
        _, errors = done.communicate()
        assert done.returncode == 0, errors.decode()
    resumed, whole = (safetensors.torch.load_file(tmp_path / f"{name}.safetensors") for name in ("resumed", "whole"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items()), f"killed after {wait} s"


# ---------------------------------------------------------------------- what can be wrong


def test_a_checkpoint_of_another_training_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    fit(program(), data(), cross_entropy, BASE(checkpoint=str(tmp_path)))
    with pytest.raises(UserError, match=r"another folder: .* with other learning_rate, seed\."):
        fit(program(), data(), cross_entropy, BASE(checkpoint=str(tmp_path), learning_rate=0.1), seed=3)
    other = program()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(UserError, match="with other weights"):
        fit(other, data(), cross_entropy, BASE(checkpoint=str(tmp_path)))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    fit(program(), data(), cross_entropy, BASE(checkpoint=str(tmp_path)))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"Remove .*{FILE}: the checkpoint cannot be read"):
        fit(program(), data(), cross_entropy, BASE(checkpoint=str(tmp_path)))


def test_a_half_written_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(b"half")
    trained = fit(program(), data(), cross_entropy, BASE(checkpoint=str(tmp_path)))
    assert trained.history.steps == 24
    assert {path.name for path in tmp_path.iterdir()} == {FILE}
