from __future__ import annotations

import torch
from torch import Tensor, nn

import planish
from tests.compiler.models import Counting


def warnings_of(model: nn.Module) -> set[str]:
    return {finding.check.name for finding in planish.check(model, "x86-avx512-vnni", torch.randn(2, 3))}


def test_a_model_that_writes_into_its_buffers_is_told_that_the_artifact_keeps_no_state() -> None:
    assert "no-state" in warnings_of(Counting())
    result = planish.compile(Counting(), "x86-avx512-vnni", torch.randn(2, 3), passes=[])
    assert any("keeps no state" in note for note in result.report.notes)


def test_a_model_that_overwrites_only_what_it_has_computed_is_not() -> None:
    class Masking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            y[:, 0] = 0
            return y

    assert "no-state" not in warnings_of(Masking())
