"""planish.compile with what users really pass: one clear sentence each, and nothing half-written."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import planish
from planish.compiler.errors import UserError
from planish.passes.quantize_int8 import QuantizeInt8
from tests.compiler.fakes import FakeBackend, vnni
from tests.compiler.models import Cnn

TARGET = "x86-avx512-vnni"
X = torch.randn(4, 3, 8, 8)


def refused(tmp_path: Path, match: str, model: nn.Module | None = None, target: Any = TARGET, **options: Any) -> str:
    """The message of the UserError; nothing is left in the folder."""
    options.setdefault("passes", [QuantizeInt8()])
    with pytest.raises(UserError, match=match) as caught:
        planish.compile(model or Cnn().eval(), target, output=tmp_path / "out", **options)
    assert [*tmp_path.iterdir()] == [], "something was left behind"
    return str(caught.value)


def broken(where: tuple[int, ...], value: float) -> Tensor:
    batch = X.clone()
    batch[where] = value
    return batch


class Nothing(Dataset[Tensor]):
    def __len__(self) -> int:
        return 0


CALIBRATION: dict[str, tuple[Callable[[], Any], str]] = {
    "empty list": (list, "at least one batch"),
    "empty loader": (lambda: DataLoader(Nothing(), batch_size=2), "at least one batch"),
    "empty generator": (lambda: iter(()), "at least one batch"),
    "NaN in the first batch": (lambda: [broken((1, 2, 0, 0), float("nan"))], "NaN.*calibration batch 0"),
    "infinite in the second": (lambda: [X, broken((0, 0, 0, 0), float("inf"))], "calibration batch 1"),
    "another shape": (lambda: [X, torch.randn(4, 3, 9, 8)], r"calibration batch 1 as .*\[4, 3, 9, 8\]"),
    "too few axes": (lambda: [X, torch.randn(3, 8, 8)], r"calibration batch 1 .*\[3, 8, 8\]"),
    "another dtype": (lambda: [X, X.double()], "calibration batch 1 .*float64"),
    "whole numbers": (lambda: [X, X.long()], "calibration batch 1 .*int64"),
    "no tensors": (lambda: ["a", "b"], "Yield tensors"),
    "a number": (lambda: 5, "calibration"),
    "empty batch": (lambda: [torch.randn(0, 3, 8, 8)], "non-empty"),
    "names that forward does not have": (lambda: [{"pixels": X}], r"\(x\); got pixels"),
}


@pytest.mark.parametrize("name", CALIBRATION)
def test_calibration_data_that_does_not_fit_is_told(name: str, tmp_path: Path) -> None:
    data, match = CALIBRATION[name]
    refused(tmp_path, match, calibration=data(), example_inputs=X)


class Missing(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 5:
            raise FileNotFoundError("image5.png")
        return X[0]


def _raises() -> Iterator[Tensor]:
    yield X
    raise FileNotFoundError("image5.png")


@pytest.mark.parametrize("data", [lambda: DataLoader(Missing(), batch_size=2), _raises], ids=["loader", "generator"])
def test_calibration_data_that_raises_is_told_as_the_data_and_not_as_the_output(
    data: Callable[[], Any], tmp_path: Path
) -> None:
    told = refused(tmp_path, r"image5\.png", calibration=data())
    assert "alibration" in told and "Make room" not in told and "Report this" not in told


@pytest.mark.parametrize("calibrator", ["mes", "MSE", ""])
def test_an_unknown_calibrator_is_told(calibrator: str) -> None:
    with pytest.raises(UserError, match=r"minmax|mse"):
        QuantizeInt8(calibrator=calibrator)


@pytest.mark.parametrize("passes", [[object()], [QuantizeInt8], ["quantize-int8"], "quantize-int8", 7])
def test_what_is_no_pass_is_told(passes: Any, tmp_path: Path) -> None:
    refused(tmp_path, "passes=", example_inputs=X, passes=passes)


def test_a_target_without_int8_is_told_for_the_pass_that_needs_it(tmp_path: Path) -> None:
    support = vnni().support.model_copy(update={"dtypes": ("fp32",)})
    profile = vnni().model_copy(
        update={"quantization": None, "support": support, "channel_alignment": {}, "sources": {}}
    )
    refused(tmp_path, f"another target.*{profile.title}", target=profile, example_inputs=X)
    assert planish.compile(Cnn().eval(), profile, X).run(X).shape == (4, 5)


def test_a_metric_that_raises_is_told(tmp_path: Path) -> None:
    def metric(run: Any) -> float:
        return float(run(X)[0, 99])

    refused(tmp_path, "Mend the metric: it raised IndexError", example_inputs=X, metric=metric, passes=[])


@pytest.mark.parametrize("budget", [{"size_mb": 3}, 3])
def test_what_is_no_budget_is_told(budget: Any, tmp_path: Path) -> None:
    refused(tmp_path, "Budget", example_inputs=X, budget=budget)


@pytest.mark.parametrize("value", [-1, float("nan"), "small"])
def test_a_budget_that_is_no_amount_is_told(value: Any) -> None:
    with pytest.raises(UserError, match="size_mb"):
        planish.Budget(size_mb=value)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # this line
            return x * 2
        return x


class Leaves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.detach().numpy().max())  # this line


@pytest.mark.parametrize("model", [Branches(), Leaves()])
def test_a_model_that_cannot_be_traced_is_told_with_its_line(model: nn.Module, tmp_path: Path) -> None:
    lines, start = inspect.getsourcelines(type(model))
    line = start + next(index for index, text in enumerate(lines) if "this line" in text)
    told = refused(tmp_path, type(model).__name__, model, example_inputs=torch.randn(2, 3))
    assert f"{Path(__file__).name}:{line}" in told or (Path(__file__).name in told and str(line) in told)


@pytest.mark.parametrize("model", [None, "resnet18", torch.relu, nn.ReLU, 3])
def test_what_is_no_model_is_told(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model"):
        planish.compile(model, TARGET, X, output=tmp_path / "out")


@pytest.mark.parametrize("inputs", [torch.randn(4, 1, 8, 8), (X, X), {"y": X}, "x", torch.full_like(X, float("nan"))])
def test_example_inputs_that_the_model_does_not_take_are_told(inputs: Any, tmp_path: Path) -> None:
    refused(tmp_path, r"example.inputs|inputs|shape", example_inputs=inputs)


@pytest.mark.parametrize("output", [None, "out"])
def test_a_full_disk_is_told_and_leaves_nothing(output: str | None, tmp_path: Path) -> None:
    backend = FakeBackend(failure=OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(UserError, match=r"room.*No space left"):
        planish.compile(Cnn().eval(), TARGET, X, backend=backend, output=output and tmp_path / output)
    assert [*tmp_path.iterdir()] == []


def test_calling_an_artifact_with_other_arguments_is_told() -> None:
    result = planish.compile(Cnn().eval(), TARGET, X, passes=[])
    for args, kwargs in (((), {}), ((X, X), {}), ((), {"y": X})):
        with pytest.raises(UserError, match=r"\(x\)"):
            result.run(*args, **kwargs)


@pytest.mark.parametrize(
    "x",
    [X.double(), X[0], torch.randn(2, 3, 9, 9), torch.randn(2, 4, 8, 8), X.numpy()],
    ids=["dtype", "rank", "size", "channels", "numpy"],
)
def test_calling_an_artifact_with_a_tensor_of_another_form_is_told(x: Any) -> None:
    result = planish.compile(Cnn().eval(), TARGET, X, passes=[])
    with pytest.raises(UserError, match="x"):
        result.run(x)
