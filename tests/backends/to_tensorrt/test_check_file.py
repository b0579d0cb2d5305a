from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import planish
from planish.compiler import driver
from planish.compiler.errors import UserError
from tests.backends.to_tensorrt.cases import IN_FLOAT, LAYERS, REJECTED
from tests.backends.to_tensorrt.graphs import Graph
from tests.compiler.command_line import planish_says

CASES = {**{name: (case, "") for name, case in LAYERS.items()}, **IN_FLOAT, **REJECTED}


def saved(name: str, folder: Path) -> Path:
    graph = Graph()
    onnx.save(graph.proto(CASES[name][0](graph)), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("name", ["matmul", "matmul scaled along the sum", "relu between", "zero point"])
def test_a_file_from_elsewhere_is_checked(name: str, tmp_path: Path) -> None:
    found = driver.check_file(saved(name, tmp_path), "jetson-orin")
    assert {finding.check.name for finding in found} == ({CASES[name][1]} if CASES[name][1] else set())


def test_the_command_takes_onnx_files_and_its_code_tells_errors(tmp_path: Path) -> None:
    file = saved("zero point", tmp_path)
    told, _ = planish_says("check", str(file), "--target", "jetson-orin", code=1)
    assert "no zero point but 0" in told and "https://" in told and "quantizelinear_0" in told
    findings = json.loads(planish_says("check", str(file), "--target", "jetson-orin", "--json", code=1)[0])["findings"]
    assert {(each["severity"], each["op"]) for each in findings} == {
        ("error", "QuantizeLinear"), ("error", "DequantizeLinear"),
    }  # fmt: skip
    planish_says("check", str(saved("matmul", tmp_path)), "--target", "jetson-orin")


def test_planishs_own_file_names_source_modules(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(6))
    planish.compile(model.eval(), "jetson-orin", torch.randn(2, 3, 8, 8), output=tmp_path / "artifact", passes=[])
    found = driver.check_file(tmp_path / "artifact/model.onnx", "jetson-agx-xavier")
    assert ("known-operators", "LayerNormalization", "1") in {(each.check.name, each.op, each.module) for each in found}


def test_scales_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    graph = Graph()
    proto = graph.proto(REJECTED["scale of zero"][0](graph))
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)
    found = driver.check_file(tmp_path / "model.onnx", "jetson-orin")
    assert {finding.check.name for finding in found} == {"positive-scales"}


def test_a_damaged_or_missing_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "odd.onnx").write_bytes(b"no model")
    for name in ("odd.onnx", "missing.onnx"):
        with pytest.raises(UserError, match=r"no ONNX model|there is no"):
            driver.check_file(tmp_path / name, "jetson-orin")


def test_a_target_whose_backend_checks_no_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="onnx backend checks no files"):
        driver.check_file(saved("matmul", tmp_path), "x86-avx2")
