"""End to end: compile, run, options, what goes to the device."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("ai_edge_litert")
import planish
from planish.backends.to_tflite.audit import operators_in
from planish.backends.to_tflite.backend import TfliteBackend
from planish.compiler import paired_timing
from planish.compiler.hardware import Host
from planish.compiler.host import not_this_machine
from tests.backends.to_tflite.nets import Residual, profile


@pytest.fixture(scope="module")
def model() -> Residual:
    torch.manual_seed(0)
    return Residual(16).eval()


@pytest.fixture(scope="module")
def compiled(model: Residual, tmp_path_factory: pytest.TempPathFactory) -> planish.Result:
    rows = [torch.randn(8, 3, 32, 32)]
    folder = tmp_path_factory.mktemp("compiled") / "pi"
    return planish.compile(
        model,
        "raspberry-pi-5",
        torch.randn(1, 3, 32, 32),
        calibration=rows,
        passes=[planish.QuantizeInt8()],
        output=folder,
    )


@pytest.fixture(scope="module")
def in_float(model: Residual) -> planish.Result:
    return planish.compile(model, "raspberry-pi-5", torch.randn(1, 3, 32, 32), passes=[])


def test_compiling_for_a_raspberry_pi_gives_an_int8_file_that_runs_here(compiled: planish.Result) -> None:
    assert compiled.artifact.manifest.backend == "tflite"
    kinds = {operator.kind for operator in operators_in(compiled.artifact.folder / "model.tflite")}
    assert {"QUANTIZE", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "DEQUANTIZE"} <= kinds
    x = torch.randn(1, 3, 32, 32)
    assert compiled.run(x).shape == (1, 5)
    assert any("no TRANSPOSE" in note for note in compiled.report.notes)


def test_a_saved_artifact_loads_and_gives_the_same(compiled: planish.Result) -> None:
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(planish.load(compiled.artifact.folder).run(x), compiled.run(x))


def test_a_float_artifact_agrees_to_the_last_digits(in_float: planish.Result) -> None:
    assert in_float.report.errors[0].max_relative < 1e-5


def test_float16_weights_halve_the_file(model: Residual, compiled: planish.Result) -> None:
    torch.manual_seed(0)
    wide = Residual(128).eval()
    sizes = [
        planish.compile(wide, "raspberry-pi-5", torch.randn(1, 3, 16, 16), passes=[], backend=backend).artifact
        for backend in (TfliteBackend(), TfliteBackend(weights="float16"))
    ]
    assert sizes[1].size_bytes < 0.7 * sizes[0].size_bytes


def test_a_device_with_nothing_but_int8_takes_and_gives_integers(model: Residual) -> None:
    x = torch.randn(1, 3, 32, 32)
    result = planish.compile(
        model, "coral-edgetpu", x, calibration=[torch.randn(8, 3, 32, 32)], passes=[planish.QuantizeInt8()]
    )
    ends = json.loads((result.artifact.folder / "ends.json").read_text())
    assert all(end["scale"] for end in (*ends["inputs"], *ends["outputs"]))
    assert not result.report.runtime_decisions


def test_floats_on_a_device_with_nothing_but_int8_are_reported(model: Residual) -> None:
    result = planish.compile(model, "coral-edgetpu", torch.randn(1, 3, 32, 32), passes=[])
    told = {(decision.op, decision.outcome) for decision in result.report.runtime_decisions}
    assert ("aten.conv2d", "elsewhere") in told


def test_images_can_be_taken_as_pytorch_has_them(model: Residual) -> None:
    backend = TfliteBackend(channels_last=False)
    x = torch.randn(1, 3, 32, 32)
    result = planish.compile(model, "raspberry-pi-5", x, passes=[], backend=backend)
    ends = json.loads((result.artifact.folder / "ends.json").read_text())
    assert ends["inputs"][0]["shape"] == [1, 3, 32, 32]
    assert any("1 TRANSPOSE." in note for note in result.report.notes)


def test_times_are_taken_only_on_such_a_device() -> None:
    backend = TfliteBackend()
    for name in ("raspberry-pi-5", "pixel-8", "cortex-m7"):
        assert backend.cannot_time(profile(name)) == not_this_machine(profile(name))
    here = profile().model_copy(update={"host": Host(machine=platform.machine(), cpu_flags=())})
    assert backend.cannot_time(here) is None


def test_two_files_are_timed_in_turns_on_one_and_two_threads(
    compiled: planish.Result, in_float: planish.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired_timing, "SECONDS", 0.02)
    folders = [compiled.artifact.folder, in_float.artifact.folder]
    for threads in (1, 2):
        times = TfliteBackend().time(folders, profile(), [torch.randn(1, 3, 32, 32)], threads)
        assert [time.threads for time in times] == [threads, threads]
        assert all(time.median_ms > 0 and "XNNPACK" in time.how for time in times)


def test_the_check_script_passes_here_and_fails_on_other_outputs(compiled: planish.Result) -> None:
    folder = compiled.artifact.folder
    command = [sys.executable, "-P", str(folder / "check.py"), "--calls", "3"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    good = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert good.returncode == 0 and "as expected" in good.stdout, good.stderr
    expected = folder / "expected_output_0.npy"
    kept = np.load(expected)
    np.save(expected, -kept)
    bad = subprocess.run(command, capture_output=True, text=True, env=environment)
    np.save(expected, kept)
    assert bad.returncode == 1 and "WRONG" in bad.stdout


def test_a_microcontroller_gets_the_file_as_an_array(model: Residual) -> None:
    result = planish.compile(model, "cortex-m7", torch.randn(1, 3, 32, 32), passes=[])
    folder = result.artifact.folder
    text = (folder / "model_data.cc").read_text()
    body = text[text.index("= {") + 3 : text.index("};")]
    assert (
        bytes(int(byte, 16) for byte in body.replace("\n", " ").split(",") if byte.strip())
        == (folder / "model.tflite").read_bytes()
    )
