"""Complex numbers as pairs: Fourier transforms against PyTorch's, as Programs and as packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("coremltools")

from planish.backends.to_coreml.backend import CoreMLBackend
from planish.backends.to_coreml.checks import CHECKS
from planish.backends.to_coreml.complex_numbers import real_numbers
from planish.compiler.plugins import registry
from tests.backends.to_coreml.families import relative_error
from tests.backends.to_coreml.packaged import assert_agrees, program_of

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "padded and cut": lambda x: (torch.fft.fft(x, 11).abs(), torch.fft.fft(x, 3, 1).real, torch.fft.rfft(x, 5).imag),
    "norms": lambda x: tuple(
        part
        for norm in ("ortho", "forward", "backward")
        for part in (torch.fft.fft(x, norm=norm).imag, torch.fft.ifft(x, norm=norm).real)
    ),
    "two axes": lambda x: (
        torch.fft.fft2(x).abs(), torch.view_as_real(torch.fft.rfft2(x)), torch.fft.fftn(x, dim=(1, 2)).real,
    ),
    "a filter": lambda x: torch.fft.irfft(
        torch.fft.rfft(x, norm="ortho") * torch.complex(x[..., :5], x[..., 3:]), norm="ortho"
    ),
    "odd length": lambda x: torch.fft.irfft(torch.fft.rfft(x[..., :7]), 7),
    "sums": lambda x: (
        (torch.fft.fft(x) + 1.0 - torch.fft.fft(x, dim=1)).transpose(1, 2).abs(), torch.fft.fft(x).sum(1).abs(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_real_form_computes_the_same(form: str) -> None:
    program = program_of(FORMS[form], X)
    real = real_numbers(program)
    assert not any(
        torch.is_complex(node.meta["val"]) for node in real.calls() if isinstance(node.meta.get("val"), Tensor)
    )
    with torch.no_grad():
        wanted, got = program(X), real(X)
    pairs = zip(wanted, got, strict=True) if isinstance(wanted, tuple) else [(wanted, got)]
    assert all(relative_error(a, b) < 2e-6 for a, b in pairs)


def test_a_package_has_fourier_transforms() -> None:
    assert_agrees(lambda x: (*FORMS["a filter"](x).unbind(1), *FORMS["two axes"](x)), X)


def test_complex_numbers_beyond_the_rules_are_named_ahead() -> None:
    program = program_of(lambda x: torch.fft.fft(x).angle(), X)
    profile = registry().find_profile("iphone-15")
    found = [check.name for check in CoreMLBackend().checks(profile) for _ in check.offenders(program)]
    assert "real-numbers" in found and {check.name for check in CHECKS} >= set(found)
