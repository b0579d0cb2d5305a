from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from planish.backends.to_onnx.backend import OnnxBackend
from planish.compiler.contracts import run_checks
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import source_module
from planish.compiler.trace import trace
from tests.compiler.models import NAMES, case


def findings(model: nn.Module, inputs: Inputs) -> list[tuple[str, str, str]]:
    """(check, severity, module) of each node that breaks a requirement."""
    profile = registry().find_profile("x86-avx512-vnni")
    found = run_checks(trace(model, inputs), OnnxBackend().checks(profile))
    return [(each.check.name, each.check.severity, source_module(each.node)) for each in found]


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_models_fulfil_all_checks(name: str) -> None:
    found = case(name)
    assert findings(found.model, found.inputs) == []


def test_complex_numbers_are_an_error_that_names_the_module() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).angle()

    found = findings(nn.Sequential(nn.Linear(8, 8), Spectrum()), Inputs.of(torch.randn(2, 8)))
    assert ("no-complex-numbers", "error", "1") in found


def test_complex_numbers_that_real_ones_stand_for_are_none() -> None:
    class Filter(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * 2j).contiguous()

    assert not findings(nn.Sequential(nn.Linear(8, 8), Filter()), Inputs.of(torch.randn(2, 8)))


def test_an_operator_without_a_rule_is_a_warning_that_names_the_module() -> None:
    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.matrix_exp(x @ x.transpose(1, 2))

    found = findings(nn.Sequential(nn.Linear(4, 4), Rare()), Inputs.of(torch.randn(2, 4, 4)))
    assert ("own-rules", "warning", "1") in found
    assert not [each for each in found if each[1] == "error"]


def test_every_check_says_what_to_do_in_a_sentence() -> None:
    for profile in registry().profiles.values():
        for check in OnnxBackend().checks(profile):
            assert check.sentence.endswith(".") and len(check.sentence.split()) > 5
