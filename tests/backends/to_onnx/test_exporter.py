"""The ways around a missing rule: PyTorch's decompositions, then PyTorch's exporter, then one clear error."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.backends.to_onnx.exporter import export, lower_any
from planish.compiler.errors import LoweringError
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace
from tests.backends.to_onnx.families import relative_error, run_onnx
from tests.backends.to_onnx.test_lower import Named, unsupported_program


class Cosine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.cosine_similarity(x, x.flip(-1))


class Writing(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, 0].fill_(2.0)
        y[:, 1:] += 1
        self.calls.add_(1)
        return y * x


class Spectrum(nn.Module):
    """Of 2,048 points, whose matrix would have 16 MiB."""

    def forward(self, signal: Tensor) -> Tensor:
        return torch.fft.rfft(signal.repeat(1, 512), dim=-1).abs()


class FiveDimensions(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x) + F.scaled_dot_product_attention(x, x, x, mask)


@pytest.mark.parametrize(
    ("module", "way"),
    [
        (nn.ReLU(), "by its rule"),
        (Cosine(), r"decomposed aten\.cosine_similarity"),
        (Writing(), r"decomposed .*aten\.add_"),
        (Spectrum(), r"torch\.onnx\.export.*fft_rfft"),
    ],
)
def test_the_report_says_which_way_was_taken_and_why(module: nn.Module, way: str) -> None:
    model, sentence = lower_any(trace(module, Inputs((torch.randn(2, 4),))), 20)
    assert re.search(way, sentence)
    x = torch.randn(5, 4)
    (got,) = run_onnx(model, Inputs((x,)))
    assert relative_error(module(x), got) < 1e-5
    assert [str(value.shape) for value in model.graph.inputs] == ["[batch,4]"]


def test_an_operator_that_nothing_lowers_is_named_with_its_module(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LoweringError, match=r"aten\.digamma.*from module 1\.0"):
        lower_any(unsupported_program(), 20)
    assert capfd.readouterr() == ("", "")


def test_the_exporter_names_inputs_outputs_and_axes_as_the_rules_do(capfd: pytest.CaptureFixture[str]) -> None:
    model = export(trace(Named(), Inputs((torch.ones(2, 4), torch.ones(2, 4)))), 20)
    assert [(value.name, str(value.shape)) for value in model.graph.inputs] == [
        ("left", "[batch,4]"),
        ("right", "[batch,4]"),
    ]
    assert [value.name for value in model.graph.outputs] == ["output_0", "output_2", "output_3", "output_4"]
    assert capfd.readouterr() == ("", "")


def test_the_exporter_lowers_attention_of_five_dimensions() -> None:
    inputs = Inputs((torch.randn(2, 2, 3, 5, 4), torch.ones(2, 2, 1, 5, 5).tril().bool()))
    module = FiveDimensions()
    model = export(trace(module, inputs), 20)
    (got,) = run_onnx(model, inputs)
    assert relative_error(inputs.call(module), got) < 1e-5
