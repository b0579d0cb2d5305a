from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import planish
from planish.compiler.report import Report

SCRIPT = Path(__file__).parents[2] / "examples" / "digits.py"


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    pytest.importorskip("sklearn", reason="the demo's images come with scikit-learn")
    spec = importlib.util.spec_from_file_location("digits_demo", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_image_is_both_trained_on_and_held_out(digits: ModuleType) -> None:
    training, held_out = digits.loaders()
    train, rest = ({index for index in loader.dataset.indices} for loader in (training, held_out))
    assert not train & rest
    assert len(train | rest) == 1797


def test_the_accuracy_counts_what_was_read_right(digits: ModuleType) -> None:
    images = torch.zeros(4, 1, 8, 8)
    labels = torch.tensor([0, 1, 1, 1])
    accuracy = digits.accuracy_on([(images, labels)])
    always_one = torch.nn.functional.one_hot(torch.ones(4, dtype=torch.long), 10).float()
    assert accuracy(lambda _: always_one) == 0.75


@pytest.mark.slow
def test_the_demo_leaves_an_artifact_that_reads_digits_and_its_report(
    digits: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "digits"
    options = ["--epochs", "2", "--target", "x86-avx512-vnni", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["digits.py", *options])
    digits.main()
    report = Report.load(output / "report.json")
    assert report.result is not None and report.result.metric is not None and report.result.metric > 0.9
    _, held_out = digits.loaders()
    assert digits.accuracy_on(held_out)(planish.load(output).run) == pytest.approx(report.result.metric)
    assert json.loads((output / "manifest.json").read_text())["model"] == "DigitsNet"
    shown = capsys.readouterr().out
    assert str(report.result.metric)[:6] in shown and str(output / "report.json") in shown
