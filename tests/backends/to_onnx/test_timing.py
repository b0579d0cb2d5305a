from __future__ import annotations

import os
from pathlib import Path

import onnxruntime
import psutil
import pytest
import torch
from torch import nn

from planish.backends.to_onnx.backend import FILE, OnnxBackend
from planish.backends.to_onnx.timing import time_files
from planish.compiler import paired_timing
from planish.compiler.errors import LoweringError
from planish.compiler.host import cpu_name
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.trace import trace

X = torch.randn(3, 256)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small and a much larger network."""
    made = []
    for width, depth in ((16, 1), (1024, 6)):
        layers = [nn.Linear(width, width) for _ in range(depth)]
        folder = tmp_path_factory.mktemp("models")
        program = trace(nn.Sequential(nn.Linear(256, width), *layers).eval(), Inputs.of(X))
        OnnxBackend().lower(program, registry().find_profile("x86-avx512-vnni"), folder)
        made.append(folder)
    return made


def test_times_are_measured_in_turns_and_say_how(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_timing, "SECONDS", 0.2)
    profile = registry().find_profile("x86-avx512-vnni")
    small, large = OnnxBackend().time(folders, profile, [X])
    assert small.median_ms * 5 < large.median_ms
    for found in (small, large):
        assert found.source == "measured" and found.batch == 3 and found.threads == 1
        assert found.p95_ms is not None and found.p95_ms >= found.median_ms > 0
        assert found.runs >= 5
        assert onnxruntime.__version__ in found.how and cpu_name() in found.how and "1 thread" in found.how


def test_no_process_is_left_behind(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_timing, "SECONDS", 0.05)
    before = {child.pid for child in psutil.Process(os.getpid()).children()}
    time_files([folder / FILE for folder in folders], [X])
    assert {child.pid for child in psutil.Process(os.getpid()).children()} <= before


def test_a_file_that_does_not_load_is_named_and_no_process_left(folders: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    before = {child.pid for child in psutil.Process(os.getpid()).children()}
    with pytest.raises(LoweringError, match=r"cannot run broken\.onnx"):
        time_files([folders[0] / FILE, tmp_path / "broken.onnx"], [X])
    assert {child.pid for child in psutil.Process(os.getpid()).children()} <= before


def test_inputs_that_do_not_fit_are_an_error_with_the_runtimes_words(folders: list[Path]) -> None:
    with pytest.raises(LoweringError, match="input_1"):
        time_files([folders[0] / FILE], [torch.randn(3, 7)])


def test_each_file_is_timed_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Scripted:
        def __init__(self, name: str, ms: float) -> None:
            self.name, self.ms = name, ms

        def calls(self, count: int) -> list[float]:
            order.append(self.name)
            return [self.ms] * count

    monkeypatch.setattr(paired_timing, "SECONDS", 0.6)
    a, b = paired_timing.in_turns([Scripted("a", 1.0), Scripted("b", 100.0)])  # type: ignore[list-item]
    assert order == ["a", "b"] * (len(order) // 2), "they do not take turns"
    assert len(order) // 2 >= 5 and len(a) == paired_timing.ROUNDS * 50 and len(b) == paired_timing.ROUNDS
