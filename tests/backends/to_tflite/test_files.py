"""Files as the runtime and the schema read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert")
from ai_edge_litert import schema_py_generated as fb
from ai_edge_litert.interpreter import Interpreter

from planish.backends.to_tflite import files
from planish.backends.to_tflite.converter import convert
from planish.backends.to_tflite.ends import ends_of
from planish.backends.to_tflite.files import save
from planish.backends.to_tflite.gate import run_once
from planish.compiler.errors import LoweringError
from tests.backends.to_tflite.nets import Residual
from tests.backends.to_tflite.oracle import converted, traced


def test_inputs_and_outputs_have_names_and_the_signature_knows_them(tmp_path: Path) -> None:
    save(convert(traced(Residual(), torch.randn(1, 3, 16, 16))).graph, tmp_path / "model.tflite")
    signatures = Interpreter(str(tmp_path / "model.tflite")).get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["x"], "outputs": ["output_0"]}}


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Residual()
    for name in ("a", "b"):
        save(convert(traced(model, torch.randn(1, 3, 16, 16))).graph, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_constants_lie_aligned_and_shared_weights_once(tmp_path: Path) -> None:
    layer = nn.Linear(64, 64)
    save(convert(traced(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(1, 64))).graph, tmp_path / "model.tflite")
    data = bytearray((tmp_path / "model.tflite").read_bytes())
    model = fb.Model.GetRootAs(data, 0)
    buffers = [model.Buffers(place) for place in range(model.BuffersLength())]
    starts = [buffer.DataAsNumpy().ctypes.data for buffer in buffers if buffer.DataLength()]
    base = min(starts) % 16
    assert all(start % 16 == base for start in starts)
    assert sum(buffer.DataLength() >= 64 * 64 * 4 for buffer in buffers) == 1


def test_what_no_output_depends_on_is_left_out(tmp_path: Path) -> None:
    made = converted(lambda x: x.max(-1)[0], torch.randn(2, 4))
    kept = save(made.graph, tmp_path / "model.tflite")
    assert [operator.kind for operator in kept] == ["REDUCE_MAX"]


def test_a_file_beyond_two_gibibytes_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LARGEST", 1000)
    with pytest.raises(LoweringError, match="2 GiB"):
        save(convert(traced(nn.Linear(64, 64), torch.randn(1, 64))).graph, tmp_path / "model.tflite")
    assert not [*tmp_path.iterdir()]


def test_a_file_that_crashes_or_does_not_load_is_a_lowering_error(tmp_path: Path) -> None:
    made = convert(traced(Residual(), torch.randn(1, 3, 16, 16)))
    path = tmp_path / "model.tflite"
    save(made.graph, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(LoweringError, match=r"ai-edge-litert .* cannot run model\.tflite"):
        run_once(path, ends_of(made.graph, made.program), [torch.randn(1, 3, 16, 16)])


def test_numbers_that_int32_does_not_hold_are_refused() -> None:
    from planish.backends.to_tflite.ends import to_file
    from planish.compiler.errors import UserError

    made = converted(lambda x: x + 1, torch.arange(3))
    with pytest.raises(UserError, match=r"below 2\^31"):
        to_file([torch.tensor([2**31, 0, 0])], ends_of(made.graph, made.program).inputs)
