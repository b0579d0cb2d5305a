from __future__ import annotations

import json
from pathlib import Path

import pytest

from planish.compiler.cli_groups import _abbreviated, _ladder
from tests.compiler.command_line import planish_says, refusal

ENCODER = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.widen, self.narrow, self.norm = nn.Linear(32, 48), nn.Linear(48, 32), nn.LayerNorm(32)

    def forward(self, x):
        return self.norm(x + self.narrow(self.widen(x).relu()))

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(16, 32), nn.Sequential(Block(), Block()), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)))

net = Encoder().eval()
x = torch.randn(2, 16)
fixed = nn.Linear(16, 3).eval()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "encoder.py").write_text(ENCODER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_groups_are_listed_with_widths_macs_members_and_what_runs_fast() -> None:
    out, _ = planish_says("groups", "encoder.py:net", "--inputs", "encoder.py:x", "-t", "x86-avx512-vnni", "--json")
    told = json.loads(out)
    found = {group["name"]: group for group in told["groups"]}
    assert {name: group["width"] for name, group in found.items()} == {
        "embed": 32,
        "blocks.0.widen": 48,
        "blocks.1.widen": 48,
    }
    assert (told["multiple"], found["embed"]["widths_that_run_fast"]) == (16, [16, 32])
    each = 32 * 48
    assert (found["blocks.0.widen"]["macs"], told["macs"]) == (2 * each, 4 * each + 16 * 32 + 3 * 32)
    assert found["embed"]["macs"] == told["macs"] == told["macs_that_depend_on_groups"]
    assert {"tensor": "blocks.1.norm.weight", "axis": 0, "module": "blocks.1.norm"} in found["embed"]["members"]


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_cut_is_listed_with_the_reason() -> None:
    out, _ = planish_says("groups", "encoder.py:fixed", "--inputs", "encoder.py:x")
    assert "No channel of this model can be pruned" in out
    assert "it is an output of the model" in out


@pytest.mark.usefixtures("folder")
def test_the_table_shows_widths_and_members() -> None:
    out, _ = planish_says("groups", "encoder.py:net", "--inputs", "encoder.py:x", "-t", "x86-avx512-vnni")
    (row,) = [line for line in out.splitlines() if line.startswith("blocks.0.widen ")]
    assert row.split() == ["blocks.0.widen", "48", "45.5%", "16,", "32", "blocks.0.widen,", ".narrow"]
    assert "x86-avx512-vnni runs multiples of 16 fast" in " ".join(out.split())


@pytest.mark.usefixtures("folder")
def test_an_unknown_target_is_told() -> None:
    assert "x86-avx512-vnni" in refusal("groups", "encoder.py:net", "-t", "x86-avx512")


def test_names_are_shortened_by_what_they_have_in_common() -> None:
    assert _abbreviated(["layer1.0.conv1", "layer1.0.bn1", "layer1.1.conv2"]) == "layer1.0.conv1, .bn1, layer1.1.conv2"
    assert _abbreviated([f"encoder.layers.0.{name}" for name in ("q.proj", "q.norm", "out")]) == "…q.proj, .norm, …out"
    assert _abbreviated([f"m{index}" for index in range(10)]).endswith("m7 and 2 more")
    assert _abbreviated([""]) == "the model itself"


def test_widths_are_shown_as_a_ladder() -> None:
    assert [_ladder(choices) for choices in ([12], [4, 8], [1, 2, 3, 4, 5])] == ["stays", "4", "1, 2 … 4"]
