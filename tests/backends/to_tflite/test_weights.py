"""Integer weights alone, and scales that are chosen at run time: the file against the Program that the pass made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

pytest.importorskip("ai_edge_litert")
from ai_edge_litert import schema_py_generated as fb

import planish
from planish.backends.to_tflite.backend import TfliteBackend
from planish.backends.to_tflite.converter import convert
from planish.backends.to_tflite.files import save
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.errors import LoweringError, UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.verify import snr_db
from planish.passes.quantize_weights import QuantizeWeights
from tests.backends.to_onnx.family_base import Function
from tests.backends.to_tflite.nets import Residual, profile
from tests.backends.to_tflite.oracle import kinds, run_file, traced
from tests.compiler.models import TiedAround

decomposed = torch.ops.quantized_decomposed
IMAGE, TOKENS = torch.randn(1, 3, 16, 16), torch.tensor([[0, 39, 7]])


def stored(model: nn.Module, x: Tensor, activations: Literal["float", "dynamic"] = "float") -> Program:
    device = profile()
    context = Context(device, TfliteBackend().scheme(device), Calibration([], "given"))
    return QuantizeWeights(activations, min_values=0).run(traced(model, x), context)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Residual(), IMAGE),
        (nn.ConvTranspose2d(3, 4, 3, 2, 1, groups=1), IMAGE),
        (TiedAround(), TOKENS),
        (nn.GRU(8, 6, batch_first=True, bidirectional=True), torch.randn(2, 2, 8)),
    ],
    ids=["convolutions", "transposed", "tied table", "recurrent"],
)
def test_integer_weights_are_computed_with_in_float_to_the_last_digits(model: nn.Module, x: Tensor) -> None:
    program = stored(model, x)
    wanted = [leaf.detach() for leaf in pytree.tree_leaves(program(x))]
    torch.testing.assert_close(run_file(convert(program), Inputs((x,))), wanted, rtol=1e-5, atol=1e-5)


def test_all_matrices_of_a_recurrent_layer_become_integers_and_its_steps_read_them_as_layers() -> None:
    made = convert(stored(nn.LSTM(8, 6, 2), torch.randn(3, 2, 8)))
    assert kinds(made)["DEQUANTIZE"] == 4
    assert kinds(made)["FULLY_CONNECTED"] >= 3 * 2


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Linear(32, 16), torch.randn(2, 3, 32) * torch.tensor([1e-2, 1.0, 1e2]).reshape(1, 3, 1)),
        (nn.Conv2d(8, 16, 3, padding=1), torch.randn(1, 8, 9, 9)),
    ],
    ids=["rows of a layer", "an image"],
)
def test_scales_chosen_at_run_time_are_those_of_the_program(model: nn.Module, x: Tensor) -> None:
    program = stored(model, x, "dynamic")
    made = convert(program)
    assert kinds(made)["DEQUANTIZE"] == 0
    (got,) = run_file(made, Inputs((x,)))
    near, far = snr_db(program(x), got), snr_db(model(x), got)
    assert near is not None and far is not None and near > 100 > far


def test_a_net_with_scales_at_run_time_computes_what_the_program_does() -> None:
    program = stored(Residual(), IMAGE, "dynamic")
    made = convert(program)
    assert kinds(made)["DEQUANTIZE"] == 1, "the depthwise convolution computes in float"
    (got,) = run_file(made, Inputs((IMAGE,)))
    found = snr_db(program(IMAGE), got)
    assert found is None or found > 40


def test_a_tied_table_lies_in_the_file_once(tmp_path: Path) -> None:
    save(convert(stored(TiedAround(), TOKENS)).graph, tmp_path / "model.tflite")
    model = fb.Model.GetRootAs(bytearray((tmp_path / "model.tflite").read_bytes()), 0)
    sizes = [model.Buffers(place).DataLength() for place in range(model.BuffersLength())]
    assert sizes.count(40 * 32) == 1 and max(sizes) == 40 * 32


def test_a_scale_for_each_channel_is_a_version_that_older_runtimes_refuse(tmp_path: Path) -> None:
    """They would take the first scale for all channels."""
    save(convert(stored(Residual(), IMAGE, "dynamic")).graph, tmp_path / "model.tflite")
    model = fb.Model.GetRootAs(bytearray((tmp_path / "model.tflite").read_bytes()), 0)
    codes = [model.OperatorCodes(place) for place in range(model.OperatorCodesLength())]
    versions = {code.BuiltinCode(): code.Version() for code in codes}
    kinds_ = fb.BuiltinOperator
    assert (versions[kinds_.FULLY_CONNECTED], versions[kinds_.CONV_2D], versions[kinds_.DEQUANTIZE]) == (12, 5, 5)


def test_scales_at_run_time_for_what_tflite_runs_in_float_are_refused() -> None:
    def function(self: nn.Module, x: Tensor) -> Tensor:
        scale, zero = decomposed.choose_qparams(x, -128, 127, 1e-6, torch.int8)
        limits = (scale, zero, -128, 127, torch.int8)
        return F.relu(decomposed.dequantize_per_tensor(decomposed.quantize_per_tensor(x, *limits), *limits))

    with pytest.raises(LoweringError, match="scales chosen at run time for what is no layer"):
        convert(traced(Function(function), torch.randn(2, 3)))


def test_compiling_with_integer_weights_makes_a_file_a_third_of_the_size() -> None:
    """Biases and scales (12 bytes a channel) are what keeps it above a quarter."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 128, 3), nn.Flatten(), nn.Linear(512, 10))
    whole, dynamic, weights = (
        planish.compile(wide.eval(), "raspberry-pi-5", torch.randn(1, 3, 6, 6), passes=passes)
        for passes in ([], [QuantizeWeights("dynamic")], [QuantizeWeights()])
    )
    for small in (dynamic, weights):
        assert small.artifact.size_bytes < whole.artifact.size_bytes / 3
        assert {decision.outcome for step in small.report.steps for decision in step.decisions} >= (
            {"int8"} if small is dynamic else {"int8 weights"}
        )


@pytest.mark.parametrize("target", ["cortex-m7", "coral-edgetpu"])
def test_devices_whose_runtime_computes_only_on_one_type_store_no_integer_weights(target: str) -> None:
    with pytest.raises(UserError, match="stores no INT8 weights"):
        planish.compile(nn.Linear(64, 64), target, torch.randn(1, 64), passes=[QuantizeWeights()])
