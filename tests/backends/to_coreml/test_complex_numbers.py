"""Complex numbers as pairs: Fourier transforms against PyTorch's, as Programs and as packages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("coremltools")

from planish.backends.to_coreml.backend import CoreMLBackend
from planish.backends.to_coreml.checks import CHECKS
from planish.compiler.plugins import registry
from tests.backends.to_coreml.packaged import assert_agrees, program_of

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


def test_a_package_has_fourier_transforms() -> None:
    def spectra(x: Tensor) -> Any:
        part = torch.complex(x[..., :5], x[..., 3:])
        filtered = torch.fft.irfft(torch.fft.rfft(x, norm="ortho") * part, norm="ortho")
        axes = torch.fft.fft2(x).abs(), torch.view_as_real(torch.fft.rfft2(x)), torch.fft.fftn(x, dim=(1, 2)).real
        return (*filtered.unbind(1), *axes)

    assert_agrees(spectra, X)


def test_complex_numbers_beyond_the_rules_are_named_ahead() -> None:
    program = program_of(lambda x: torch.fft.fft(x).angle(), X)
    profile = registry().find_profile("iphone-15")
    found = [check.name for check in CoreMLBackend().checks(profile) for _ in check.offenders(program)]
    assert "real-numbers" in found and {check.name for check in CHECKS} >= set(found)
