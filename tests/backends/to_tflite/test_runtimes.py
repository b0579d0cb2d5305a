"""The old runtime, in a Python of its own: it needs numpy below 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert")
import planish
from planish.backends.to_tflite.backend import TfliteBackend
from planish.backends.to_tflite.converter import convert
from planish.backends.to_tflite.ends import ends_of
from planish.backends.to_tflite.files import save
from planish.backends.to_tflite.gate import runtime_of, time_files
from planish.compiler import paired_timing
from planish.compiler.contracts import Pass
from planish.compiler.errors import LoweringError, UserError
from planish.passes.quantize_int8 import QuantizeInt8
from planish.passes.quantize_weights import QuantizeWeights
from tests.backends.to_tflite.nets import Residual, profile
from tests.backends.to_tflite.oracle import traced

PACKAGES = ("tflite-runtime==2.14.0", "numpy<2")
IMAGE = torch.randn(1, 3, 16, 16)


@pytest.fixture(scope="module")
def old_python(request: pytest.FixtureRequest) -> str:
    """A Python with tflite-runtime; installed once, and kept with pytest's cache."""
    folder = request.config.cache.mkdir("tflite-runtime")
    python = folder / "bin" / "python"
    if runtime_of(str(python)) is None:
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *PACKAGES]
        for command in ([sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)], pip):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"tflite-runtime cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        runtime_of.cache_clear()
    return str(python)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Residual(16).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "passes", [[], [QuantizeInt8()], [QuantizeWeights(min_values=0)]], ids=["float", "int8", "integer weights"]
)
def test_the_old_runtime_computes_what_the_program_does(model: nn.Module, old_python: str, passes: list[Pass]) -> None:
    backend = TfliteBackend(python=old_python)
    result = planish.compile(
        model, "raspberry-pi-5", IMAGE, calibration=[torch.randn(8, 3, 16, 16)], passes=passes, backend=backend
    )
    assert result.artifact.manifest.versions["tflite-runtime"] == "2.14.0"
    assert result.report.errors, "the proof ran"


@pytest.mark.slow
def test_the_old_runtime_is_timed(
    model: nn.Module, old_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired_timing, "SECONDS", 0.02)
    made = convert(traced(model, IMAGE))
    save(made.graph, tmp_path / "model.tflite")
    ends = ends_of(made.graph, made.program)
    (latency,) = time_files([tmp_path / "model.tflite"], [ends], [IMAGE], python=old_python)
    assert latency.median_ms > 0 and latency.how.startswith("tflite-runtime 2.14.0")


@pytest.mark.slow
def test_the_old_runtime_refuses_a_scale_for_each_channel_at_run_time(model: nn.Module, old_python: str) -> None:
    """It knows one scale a layer, and would be silently wrong."""
    with pytest.raises(LoweringError, match=r"tflite-runtime .* version '12'"):
        planish.compile(
            model, "raspberry-pi-5", IMAGE, calibration=[torch.randn(8, 3, 16, 16)],
            passes=[QuantizeWeights("dynamic", min_values=0)], backend=TfliteBackend(python=old_python),
        )  # fmt: skip


def test_a_python_without_a_runtime_is_named(tmp_path: Path) -> None:
    backend = TfliteBackend(python=str(tmp_path / "python"))
    assert backend.cannot_run(profile()) == f"{tmp_path}/python is no Python with ai-edge-litert or tflite-runtime"
    assert TfliteBackend(python=sys.executable).cannot_run(profile()) is None


@pytest.mark.parametrize("options", [{"ends": "uint8"}, {"weights": "int8"}])
def test_an_option_that_the_backend_does_not_have_is_said_with_the_choices(options: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"(ends='float' or 'int8'|weights='float32' or 'float16'), not"):
        TfliteBackend(**options)  # type: ignore[arg-type]
