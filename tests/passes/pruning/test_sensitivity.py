"""Sensitivity: measured once a group and share, kept, and followed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.cost import totals
from planish.compiler.errors import MissingDependency, UserError
from planish.compiler.program import Program
from planish.passes.prune_channels import PruneChannels
from planish.passes.pruning.sensitivity import Sensitivity, measure_sensitivity
from tests.passes.nets import profile, traced


def network() -> tuple[Program, torch.Tensor]:
    """Two hidden layers, one of many kinds of units and one of a single kind."""
    torch.manual_seed(0)
    second = nn.Linear(16, 16)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), second, nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        second.weight.fill_(0.1)  # its units are all alike
    x = torch.randn(64, 6)
    return traced(model, x[:2]), x


def counting(program: Program, x: torch.Tensor) -> tuple[Context, list[int]]:
    """A context whose metric is how near outputs are to those of the whole Program, and the number of its calls."""
    expected, calls = program(x).detach(), [0]

    def metric(run: Callable[..., Any]) -> float:
        calls[0] += 1
        return -float((run(x) - expected).detach().square().mean())

    return Context(profile(), None, Calibration([], "drawn"), metric=metric), calls


OPTIONS = PruneChannels(ratio=0.3, granularity=1, scope="sensitivity", sensitivity="unused.json")


def test_each_group_is_cut_alone_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    program, x = network()
    context, calls = counting(program, x)
    file = tmp_path / "sensitivity.json"
    found = measure_sensitivity(OPTIONS, program, context, file)
    assert (found.whole, {name: sorted(of) for name, of in found.groups.items()}) == (
        0.0, {"0": [0.25, 0.5, 0.75], "2": [0.25, 0.5, 0.75]},
    )  # fmt: skip
    assert calls == [7]
    assert measure_sensitivity(OPTIONS, program, context, file) == found == Sensitivity.load(file)
    assert calls == [7]

    half = PruneChannels(ratio=0, ratios={"2": 0.5}, granularity=1).run(program, context)
    assert context.metric is not None
    assert found.groups["2"][0.5] == pytest.approx(context.metric(half))


def test_a_run_that_was_killed_continues(tmp_path: Path) -> None:
    program, x = network()
    context, calls = counting(program, x)
    file = tmp_path / "sensitivity.json"
    whole = measure_sensitivity(OPTIONS, program, context, file)
    plain = json.loads(file.read_text())
    del plain["groups"]["2"]
    file.write_text(json.dumps(plain))
    assert measure_sensitivity(OPTIONS, program, context, file) == whole
    assert calls == [10]


def test_shares_between_those_measured_are_interpolated_and_a_rise_counts_as_none() -> None:
    known = Sensitivity(0.9, {"a": {0.25: 0.8, 0.5: 0.6}, "b": {0.25: 0.95, 0.5: 0.5}}, "")
    assert known.share_for("a", 0) == 0
    assert known.share_for("a", 0.2) == pytest.approx(0.375)
    assert known.share_for("a", 1) == 0.5
    assert known.share_for("b", 0) == 0.25
    assert known.share_for("unknown", 1) == 0


def test_groups_lose_what_costs_the_same(tmp_path: Path) -> None:
    program, x = network()
    context, _ = counting(program, x)
    options = PruneChannels(ratio=0.3, granularity=1, scope="sensitivity", sensitivity=str(tmp_path / "file.json"))
    pruned = options.run(program, context)
    assert 0.3 <= 1 - totals(pruned).macs / totals(program).macs < 0.4
    known = Sensitivity.load(tmp_path / "file.json")
    kept = {name: len(pruned.state_dict()[f"{name}.weight"]) for name in ("0", "2")}
    drop = max(known.whole - known.groups[name][share] for name in kept for share in (0.25, 0.5, 0.75))
    shares = [[known.share_for(name, drop * step / 1000) for name in kept] for step in range(1001)]
    removed = [1 - count / 16 for count in kept.values()]
    assert any(all(abs(a - b) <= 0.5 / 16 for a, b in zip(removed, each, strict=True)) for each in shares)


def test_bad_input_is_told(tmp_path: Path) -> None:
    program, x = network()
    context, _ = counting(program, x)
    file = tmp_path / "file.json"
    with pytest.raises(UserError, match=r'scope="sensitivity" and sensitivity="file.json" together'):
        PruneChannels(scope="sensitivity")
    measure_sensitivity(OPTIONS, program, context, file)
    with pytest.raises(UserError, match="measured on other weights or with other options"):
        measure_sensitivity(PruneChannels(criterion="l1"), program, context, file)
    file.write_text("{}")
    with pytest.raises(UserError, match="the path of a saved sensitivity"):
        Sensitivity.load(file)
    context.metric = None
    with pytest.raises(UserError, match="Pass metric="):
        measure_sensitivity(OPTIONS, program, context, file)


def test_the_plot_is_a_picture_or_names_what_is_missing(tmp_path: Path) -> None:
    known = Sensitivity(0.9, {"a": {0.25: 0.8, 0.5: 0.6}}, "")
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(MissingDependency, match="matplotlib"):
            known.plot(tmp_path / "plot.png")
    else:
        assert known.plot(tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
