from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from planish.backends.to_onnx.audit import float_fallbacks
from planish.backends.to_onnx.backend import FILE, OnnxBackend
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.report import Decision
from planish.compiler.scheme import IntegerOp, QuantizationScheme
from planish.compiler.trace import trace
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.quantize_int8 import QuantizeInt8
from tests.compiler.models import Attention

aten = torch.ops.aten
IMAGE = torch.randn(4, 16, 8, 8)


class Net(nn.Module):
    """All that the scheme quantizes: convolutions, depthwise, residual, concatenation, pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.depthwise, self.b = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.a(x)).relu()
        z = (y + self.b(self.depthwise(y).relu6() if hasattr(Tensor, "relu6") else self.depthwise(y).relu())).relu()
        result: Tensor = self.head(torch.cat([y, z], 1).mean((2, 3)))
        return result


def scheme() -> QuantizationScheme:
    found = OnnxBackend().scheme(registry().find_profile("x86-avx512-vnni"))
    assert found is not None
    return found


def quantized(model: nn.Module, x: Tensor, scheme: QuantizationScheme) -> Program:
    profile = registry().find_profile("x86-avx512-vnni")
    context = Context(profile, scheme, Calibration([Inputs.of(x)], "given"))
    program = trace(model.eval(), Inputs.of(x))
    return QuantizeInt8().run(FoldBatchNorm().run(program, context), context)


def audited(program: Program, folder: Path) -> tuple[list[Decision], list[str]]:
    OnnxBackend().lower(program, registry().find_profile("x86-avx512-vnni"), folder)
    return float_fallbacks(folder / FILE, program)


def test_all_that_is_meant_for_integers_runs_in_integers(tmp_path: Path) -> None:
    fallbacks, notes = audited(quantized(Net(), IMAGE, scheme()), tmp_path)
    assert fallbacks == []
    assert "integer operators" in notes[0]


def test_the_linears_of_attention_run_in_integers(tmp_path: Path) -> None:
    fallbacks, notes = audited(quantized(Attention(), torch.randn(2, 5, 8), scheme()), tmp_path)
    assert fallbacks == []
    assert "has 2 integer operators" in notes[0]


@pytest.mark.parametrize(
    ("operator", "layer"),
    [
        (aten.conv2d.default, nn.Conv2d(16, 32, 3)),
        (aten.conv_transpose2d.input, nn.ConvTranspose2d(16, 32, 3)),
    ],
    ids=["a convolution without an integer result", "a transposed convolution"],
)
def test_what_runs_in_float_though_meant_for_integers_is_named_with_its_module(
    operator: object, layer: nn.Module, tmp_path: Path
) -> None:
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    op = IntegerOp((operator,), (0,), weight=1, weight_axis=axis, quantizes_output=False)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Identity(), nn.Sequential(layer, nn.Sigmoid()))
    fallbacks, notes = audited(quantized(model, IMAGE, replace(scheme(), ops=(op,))), tmp_path)
    assert [(found.module, found.outcome) for found in fallbacks] == [("1.0", "float")]
    assert "conv" in fallbacks[0].op
    assert "Conv" in fallbacks[0].reason and "dequantized" in fallbacks[0].reason
    assert notes == []


def test_a_float_model_has_no_fallbacks_and_nothing_to_tell(tmp_path: Path) -> None:
    program = trace(Net().eval(), Inputs.of(IMAGE))
    assert audited(program, tmp_path) == ([], [])


def test_what_stays_float_on_purpose_is_no_fallback(tmp_path: Path) -> None:
    only = replace(scheme(), ops=tuple(op for op in scheme().ops if aten.conv2d.default in op.operators))
    fallbacks, _ = audited(quantized(Net(), IMAGE, only), tmp_path)
    assert not [found for found in fallbacks if "conv" in found.op]
