"""Forward and backward by torch.compile: the same steps as without it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import planish
from planish.compiler.errors import UserError
from planish.compiler.training_data import TrainingData
from planish.passes.training.fit import fit
from planish.passes.training.settings import Training
from tests.passes.training.tasks import accuracy, assert_same_tensors, cross_entropy, data, program

OPTIONS = partial(Training, precision="fp32", learning_rate=0.05)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_with_dropout_evaluations_and_an_average_the_weights_are_those_of_the_plain_loop() -> None:
    training = OPTIONS(epochs=3, averaging=0.9, evaluate_every=5)
    plain, compiled = (
        fit(program(dropout=0.3), data(), cross_entropy, replace(training, compiled=each), metric=accuracy)
        for each in (False, True)
    )
    assert len(plain.history.records) == len(compiled.history.records) > 3
    assert_close(compiled.program.state_dict(), plain.program.state_dict())


def test_images_and_a_smaller_last_batch_train_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))
    images, labels = torch.randn(20, 3, 6, 6), torch.arange(20) % 4
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    start = planish.trace(model, images[:2])
    plain, compiled = (
        fit(start, TrainingData(loader), cross_entropy, OPTIONS(epochs=2, compiled=each)).program
        for each in (False, True)
    )
    assert_close(compiled.state_dict(), plain.state_dict())


def test_a_training_that_continues_ends_with_the_weights_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "compiled": True, "checkpoint_every": 3}
    whole = fit(program(), data(), cross_entropy, OPTIONS(**options)).program

    class Stopped(Exception):
        pass

    def stop(_: Any, share: float) -> None:
        if share > 0.6:
            raise Stopped

    again = OPTIONS(**options, checkpoint=str(tmp_path))
    with pytest.raises(Stopped):
        fit(program(), data(), cross_entropy, again, after_step=stop)
    continued = fit(program(), data(), cross_entropy, again).program
    assert_same_tensors(continued, whole)


def test_without_a_compiler_the_option_is_refused_before_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def none(*_: Any) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(UserError, match=r"Install a C\+\+ compiler for Training\(compiled=True\)"):
        fit(program(), data(), cross_entropy, OPTIONS(steps=1, compiled=True))
