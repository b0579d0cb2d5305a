from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from planish.backends.to_onnx.backend import FILE, OnnxBackend
from planish.backends.to_onnx.lowered import OPSET
from planish.compiler.errors import MissingDependency
from planish.compiler.hardware import HardwareProfile, Runtime
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.signature import Signature
from planish.compiler.trace import trace
from tests.conftest import ROOT


def profile() -> HardwareProfile:
    return registry().find_profile("x86-avx512-vnni")


class Pair(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x - 2 * y, x.sum(1)


def traced() -> Program:
    return trace(Pair(), Inputs((torch.randn(2, 3), torch.randn(2, 3))))


@pytest.mark.parametrize(("asked", "made"), [(None, OPSET), (OPSET + 5, OPSET), (18, 18)])
def test_the_opset_is_the_newest_that_the_device_reads(asked: int | None, made: int, tmp_path: Path) -> None:
    wanted = profile().model_copy(update={"runtime": Runtime(opset=asked)})
    lowered = OnnxBackend().lower(traced(), wanted, tmp_path)
    model = onnx.load(tmp_path / FILE)
    assert [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")] == [made]
    assert lowered.versions["opset"] == str(made)
    onnx.checker.check_model(model, full_check=True)


def test_lowering_names_all_files_that_it_wrote(tmp_path: Path) -> None:
    lowered = OnnxBackend().lower(traced(), profile(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*lowered.files} == {FILE}


def test_a_runner_takes_leaves_in_order_whatever_their_strides(tmp_path: Path) -> None:
    program = traced()
    backend = OnnxBackend()
    backend.lower(program, profile(), tmp_path)
    run = backend.load(tmp_path, profile(), Signature.of(program.graph), {})
    x, y = torch.randn(3, 5).t(), torch.randn(5, 6, requires_grad=True)[:, ::2]
    first, second = run([x, y])
    torch.testing.assert_close(first, x - 2 * y.detach())
    torch.testing.assert_close(second, x.sum(1))


def test_lowering_the_same_program_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        OnnxBackend().lower(traced(), profile(), tmp_path / name)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_a_board_can_be_run_here_but_not_timed() -> None:
    orin = registry().find_profile("jetson-orin")
    assert OnnxBackend().cannot_run(orin) is None
    assert orin.title in (OnnxBackend().cannot_time(orin) or "")


def test_a_missing_runtime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )
    backend = OnnxBackend()
    assert backend.cannot_run(profile()) == backend.cannot_time(profile()) == "onnxruntime is not installed"
    with pytest.raises(MissingDependency, match=r"onnxruntime.*planish\[onnx\]"):
        backend.lower(traced(), profile(), tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_no_vendor_library_is_loaded_until_something_is_lowered() -> None:
    script = (
        "import sys, planish; from planish.compiler.plugins import registry; registry().backends;"
        "print([name for name in ('onnx', 'onnxruntime', 'onnxscript', 'onnx_ir') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
