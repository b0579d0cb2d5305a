from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import planish
from planish.compiler import cli_models
from planish.compiler.report import Report
from tests.compiler.command_line import planish_says, refusal


@pytest.mark.parametrize("inputs", ["three.npy", "user.py:three"])
def test_run_tells_and_keeps_what_the_artifact_returns(compiled: Path, user_folder: Path, inputs: str) -> None:
    rows = np.load(user_folder / "three.npy")
    module = cli_models.find("user.py:net", "the model")
    sys.modules[type(module).__module__].three = torch.from_numpy(rows)  # type: ignore[attr-defined]
    out, _ = planish_says("run", compiled, "--inputs", inputs, "--output", "outputs.npz", "--json")
    expected = planish.load(compiled).run(torch.from_numpy(rows))["scores"]
    (told,) = json.loads(out)["outputs"]
    assert (told["name"], told["dtype"], told["shape"]) == ("output['scores']", "float32", [3, 4])
    assert told["max"] == pytest.approx(expected.max().item())
    with np.load(user_folder / "outputs.npz") as kept:
        assert np.array_equal(kept["output['scores']"], expected.numpy())
    assert "[3, 4]" in planish_says("run", compiled, "--inputs", inputs)[0]


def test_run_draws_inputs_of_the_right_shape_where_none_are_named(compiled: Path) -> None:
    assert "[1, 4]" in planish_says("run", compiled)[0]


def test_run_needs_inputs_that_fit(compiled: Path) -> None:
    assert "Call with the arguments (x)" in refusal("run", compiled, "--inputs", "named.npz")


def test_what_is_no_artifact_is_refused_by_name(user_folder: Path) -> None:
    for name in ("run", "bench"):
        assert "holds no manifest.json" in refusal(name, user_folder, "--inputs", "three.npy")
    assert "holds no report.json" in refusal("report", user_folder)


def test_a_damaged_report_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"model": 3}')
    assert f"{tmp_path}/report.json is damaged" in refusal("report", tmp_path)


def test_bench_refuses_to_time_another_device_here(compiled: Path) -> None:
    assert "on the device" in refusal("bench", compiled, "--inputs", "three.npy")


@pytest.mark.slow
def test_bench_times_two_artifacts_in_one_run(user_folder: Path) -> None:
    here = json.loads(planish_says("backends", "--json")[0])
    targets = [name for row in here if row["name"] == "onnx" for name in row["times_here"]]
    if not targets:
        pytest.skip("needs a machine that is the device of some profile")
    for name in ("one", "two"):
        planish_says(
            "compile", "user.py:net", "-t", targets[0], "--inputs", "three.npy", "--no-compression", "-o", name
        )
    out, _ = planish_says("bench", "one", "--against", "two", "--inputs", "three.npy", "--threads", 2, "--json")
    latencies = [entry["latency"] for entry in json.loads(out)["artifacts"]]
    assert [(each["source"], each["batch"], each["threads"]) for each in latencies] == [("measured", 3, 2)] * 2
    assert all(0 < each["median_ms"] <= each["p95_ms"] for each in latencies)


def test_report_prints_the_saved_report_again(compiled: Path) -> None:
    report = Report.load(compiled / "report.json")
    assert Report.model_validate_json(planish_says("report", compiled, "--json")[0]) == report
    assert planish_says("report", compiled)[0].split() == str(report).split()
