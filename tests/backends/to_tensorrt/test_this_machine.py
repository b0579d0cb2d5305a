"""Engines on this machine, where it is the device: a stand-in for TensorRT 10.3, and one for a T4."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

import planish
from planish.backends.to_tensorrt import engines, this_machine
from planish.backends.to_tensorrt.backend import NOT_TENSORRT, OWN_ENGINE, TensorRtBackend
from planish.compiler import paired_timing
from planish.compiler.errors import LoweringError
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.result import Result
from planish.compiler.trace import trace
from tests.backends.to_tensorrt.device import FAKES

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in for CUDA is compiled with gcc")
BACKEND = TensorRtBackend()


class Net(nn.Module):
    """Two convolutions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return result


@pytest.fixture
def t4(tmp_path: Path, cuda: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This machine has a T4 and TensorRT 10.3. Yields the user's cache folder."""
    tools = tmp_path / "tools"
    tools.mkdir()
    shutil.copy(FAKES / "bin/nvidia-smi", tools)
    (tools / "nvidia-smi").chmod(0o755)
    for name, value in {
        "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(FAKES / "modules"), "FAKE_GPU": "Tesla T4",
        "FAKE_TENSORRT": "10.3.0", "LD_LIBRARY_PATH": str(cuda.parent), "XDG_CACHE_HOME": str(tmp_path / "caches"),
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(FAKES / "modules"))
    monkeypatch.setattr(paired_timing, "SECONDS", 0.05)
    monkeypatch.setattr(engines, "SECONDS", 0.05)
    engines._scratch.cache_clear()
    this_machine.facts.cache_clear()
    yield tmp_path / "caches" / "planish" / "tensorrt"
    this_machine.facts.cache_clear()


def compiled(folder: Path) -> Result:
    torch.manual_seed(0)
    return planish.compile(Net().eval(), "t4", torch.randn(2, 16, 12, 12), output=folder)


def lowered(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    program = trace(Net().eval(), Inputs.of(torch.randn(2, 16, 12, 12)))
    BACKEND.lower(program, registry().find_profile("t4"), folder)
    return folder


def test_only_the_device_of_the_profile_in_the_versions_of_the_profile_times_here(
    t4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = registry().find_profile
    assert BACKEND.cannot_time(known("t4")) is None
    assert "This is Tesla T4; the model was compiled for NVIDIA L4" in (BACKEND.cannot_time(known("l4")) or "")
    monkeypatch.setenv("FAKE_TENSORRT", "11.4.0")
    monkeypatch.setenv("FAKE_API", "11.4.0.106")
    this_machine.facts.cache_clear()
    assert "TensorRT is 11.4.0; the model was compiled for >=10.3,<11" in (BACKEND.cannot_time(known("t4")) or "")


def test_without_tensorrt_nothing_is_asked_and_times_are_taken_on_the_device() -> None:
    assert BACKEND.cannot_time(registry().find_profile("t4")) == this_machine.NOT_HERE


@pytest.mark.slow
def test_engines_are_timed_in_turns_and_what_is_slower_is_undone(
    t4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SLOW", "int8")
    before = {child.pid for child in psutil.Process().children()}
    result = compiled(tmp_path / "artifact")
    step = next(step for step in result.report.steps if step.compression == "quantize-int8")
    assert step.outcome == "undone" and "measured" in step.verdict
    found = result.report.result and result.report.result.latency
    assert found and found.source == "measured" and found.batch == 1 and found.threads is None
    assert found.how == "TensorRT 10.3.0, Tesla T4, by CUDA events"
    assert [file.name for file in t4.iterdir()] == ["timing-tesla-t4-10.3.0.cache"]
    assert not (tmp_path / "artifact" / "build.py").exists()  # this is the device
    assert OWN_ENGINE in result.report.notes and NOT_TENSORRT not in result.report.notes
    x = torch.randn(11, 16, 12, 12)  # more rows than the engine was built for
    torch.testing.assert_close(result.run(x), result.program(x), atol=1e-4, rtol=1e-4)
    result.artifact.__dict__.pop("_call")
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.slow
def test_the_engine_says_which_layers_run_in_int8(t4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLOW", "float")
    report = compiled(tmp_path / "artifact").report
    assert [step.outcome for step in report.steps if step.compression == "quantize-int8"] == ["kept"]
    label = "TensorRT 10.3.0 on this Tesla T4, as the engine's inspector lists it"
    assert f"{label}: 3 of 3 layers planned in INT8 run in INT8." in report.notes
    assert report.runtime_decisions == []
    (own,) = report.on_device
    assert own.device["device"] == "Tesla T4" and len(own.layers) == 3
    assert all("Int8" in layer["inputs"] for layer in own.layers)


def test_layers_that_the_engine_runs_in_float_are_named_by_module(
    t4: Path, orin_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx_ir as ir

    from planish.backends.to_tensorrt.audit import float_layers
    from planish.backends.to_tensorrt.engines import report_of

    monkeypatch.setenv("FAKE_MISHAP", "float layers")
    inputs = (torch.randn(1, 16, 8, 8), torch.randint(50, (1, 5)))
    own = report_of(orin_files, registry().find_profile("t4"), inputs)
    model = ir.load(orin_files / "model.onnx")
    program = trace(Net().eval(), Inputs.of(torch.randn(2, 16, 12, 12)))
    decisions, notes = float_layers(model, orin_files, program, registry().find_profile("t4"), own)
    assert [decision.node for decision in decisions] == ["conv2d", "linear.1"]
    assert "0 of 2 layers planned in INT8" in notes[0]


@pytest.mark.parametrize(
    ("mishap", "sentence"),
    [("wrong outputs", "Do not use what was built"), ("memory", "could not be allocated"), ("parse", "rejects")],
)
def test_an_engine_that_cannot_be_built_or_computes_otherwise_is_told_in_its_words(
    mishap: str, sentence: str, t4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MISHAP", mishap)
    with pytest.raises(LoweringError, match=sentence):
        lowered(tmp_path / "files")
