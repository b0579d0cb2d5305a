"""Complex numbers as pairs of real ones, against PyTorch's own; and what ONNX Runtime makes of the pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from planish.compiler.complex_numbers import has_complex, real_numbers
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.trace import trace
from tests.backends.to_onnx.family_base import Function
from tests.backends.to_onnx.op_oracle import assert_rule_agrees

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
TURNS = torch.polar(torch.ones(4), torch.arange(4.0))
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
    "conjugates": lambda x: (torch.fft.fft(x).conj() * torch.fft.fft(x)).real,
    "polar": lambda x: torch.view_as_real(torch.polar(x[..., :4], x[..., 4:]) * torch.polar(x, x)[..., 2:6]),
    "a constant": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(2, (4, 2))) * TURNS),
    "a cast of whole numbers": lambda x: torch.view_as_real(x.mul(3).long().to(torch.complex64)),
    "a cast to double": lambda x: torch.view_as_real(torch.fft.fft(x).to(torch.complex128)),
    "a cast": lambda x: (x.to(torch.complex64) * TURNS.repeat(2)).imag,
    "sums": lambda x: (
        (torch.fft.fft(x) + 1.0 - torch.fft.fft(x, dim=1)).transpose(1, 2).abs(), torch.fft.fft(x).sum(1).abs(),
    ),
}  # fmt: skip


def program_of(form: str) -> Program:
    return trace(Function(lambda self, x: FORMS[form](x)), Inputs((X[:2],)))


@pytest.mark.parametrize("form", FORMS)
def test_the_real_form_computes_the_same(form: str) -> None:
    program = program_of(form)
    real = real_numbers(program)
    assert has_complex(program) and not has_complex(real)
    with torch.no_grad():
        wanted, got = program(X), real(X)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_onnx_runtime_computes_the_same(form: str) -> None:
    program = program_of(form)
    assert_rule_agrees(real_numbers(program), X)


def test_a_program_of_real_numbers_stays_as_it_is() -> None:
    program = trace(Function(lambda self, x: x.relu()), Inputs((X[:2],)))
    assert real_numbers(program) is program


def test_what_no_rule_knows_stays() -> None:
    assert has_complex(real_numbers(trace(Function(lambda self, x: torch.fft.fft(x).angle()), Inputs((X[:2],)))))
