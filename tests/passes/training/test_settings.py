from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch

from planish.compiler.errors import UserError
from planish.compiler.options import plain, restored
from planish.passes.training.optimizers import make_optimizer, make_schedule
from planish.passes.training.settings import Training


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "Bound the training: give Training(…) epochs, steps or minutes."),
        ({"epochs": 0}, "Give Training(epochs=…) a number above 0, not 0."),
        ({"epochs": float("nan")}, "Give Training(epochs=…) a number above 0, not nan."),
        ({"steps": 2.5}, "Give Training(steps=…) a whole number of at least 1, not 2.5."),
        ({"minutes": -1}, "Give Training(minutes=…) a number above 0, not -1."),
        ({"steps": 1, "learning_rate": -0.1}, "Give Training(learning_rate=…) a number of at least 0, not -0.1."),
        ({"steps": 1, "learning_rate": None}, "Give Training(learning_rate=…) a number of at least 0, not None."),
        ({"steps": 1, "averaging": 1.0}, "Give Training(averaging=…) a number of at least 0 and below 1, not 1.0."),
        ({"steps": 1, "optimizer": "adamm"}, "optimizer 'adamm' is not known; did you mean 'adam'"),
        ({"steps": 1, "schedule": 3}, "Give Training(schedule=…) one of constant, linear, cosine, step, not 3."),
        ({"steps": 1, "precision": "fp8"}, "precision 'fp8' is not known"),
        ({"steps": 1, "patience": True}, "Give Training(patience=…) a whole number of at least 1, not True."),
    ],
)
def test_a_wrong_option_is_told_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        Training(**options)


def test_settings_round_trip_through_plain_data_and_print() -> None:
    training = Training(epochs=2.5, optimizer="adamw", clip_norm=1.0, checkpoint="somewhere", seed=4)
    table = plain(training)
    assert table.pop("kind") == "training" and "minutes" not in table
    assert Training(**restored(Training, table)) == training
    assert repr(training).startswith("Training(epochs=2.5")


def test_every_part_of_a_training_has_a_checkpoint_of_its_own() -> None:
    training = Training(steps=1, checkpoint="runs")
    assert training.part("a").checkpoint != training.part("b").checkpoint
    assert Training(steps=1).part("a") == Training(steps=1)


def test_weight_decay_holds_for_matrices_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 1), torch.nn.BatchNorm1d(3))
    groups = make_optimizer(Training(steps=1, weight_decay=0.3), model.parameters()).param_groups
    decays = {tuple(p.shape): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {(3, 2, 1): 0.3, (3,): 0.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, 0.8535533906, 0.5, 0.1464466094, 0]),
        ("step", [1, 1, 0.1, 0.01, 0.01]),
    ],
)
def test_schedules_follow_the_share_that_is_done(name: str, expected: list[float]) -> None:
    rates = _rates(Training(steps=1, learning_rate=2.0, schedule=name), [0, 0.25, 0.5, 0.75, 1])
    assert rates == pytest.approx([2 * factor for factor in expected])


def test_the_rate_rises_through_the_warm_up_and_then_follows_the_schedule() -> None:
    rates = _rates(Training(steps=1, learning_rate=1.0, schedule="linear", warmup=0.2), [0, 0.1, 0.2, 0.6, 1])
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


def _rates(training: Training, shares: list[float]) -> list[float]:
    optimizer = make_optimizer(training, [torch.nn.Parameter(torch.zeros(2, 2))])
    waiting = iter(shares)
    schedule = make_schedule(training, optimizer, lambda: next(waiting))
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in shares[1:]:
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_an_object_of_the_wrong_type_is_told() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2, 2))]
    with pytest.raises(UserError, match=r"Return a torch.optim.Optimizer from Training\(optimizer=…\), not str"):
        make_optimizer(Training(steps=1, optimizer=lambda groups, lr: "sgd"), parameters)  # type: ignore[arg-type,return-value]
    made = make_optimizer(Training(steps=1, optimizer=partial(torch.optim.SGD, momentum=0.5)), parameters)
    assert made.param_groups[0]["momentum"] == 0.5
    with pytest.raises(UserError, match=r"Return an LRScheduler from Training\(schedule=…\), not float"):
        make_schedule(Training(steps=1, schedule=lambda optimizer: 1.0), made, lambda: 0.0)  # type: ignore[arg-type,return-value]
