from __future__ import annotations

import pytest
import torch
from torch import nn

from planish.compiler.contracts import Budget, Situation
from planish.compiler.hardware import HardwareProfile
from planish.compiler.plugins import registry
from planish.passes.sparsify import Sparsify
from planish.passes.sparsity.gains import WIDE
from tests.passes.nets import SCHEME, traced

WATCHED = Budget(metric_drop=0.01)


def situation(width: int, target: str, budget: Budget = WATCHED, positions: int = 4096) -> Situation:
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    return Situation(traced(model, torch.randn(1, positions, width)), profile(target), None, budget)


def profile(target: str) -> HardwareProfile:
    return registry().find_profile(target)


def test_wide_layers_are_proposed_where_the_device_has_the_rates_and_a_loss_is_judged() -> None:
    proposal = Sparsify.propose(situation(1024, "a100"))
    assert proposal.compression == Sparsify(min_channels=WIDE)
    assert proposal.reason.startswith("2 layers of at least 256 channels in 2:4 would take ")


def test_what_is_bound_by_arithmetic_gains_the_ratio_of_the_rates_at_most() -> None:
    reason = Sparsify.propose(situation(4096, "a100", positions=8192)).reason
    gain = float(reason.split("(")[1].split("x")[0])
    assert 1.5 < gain <= 2


def test_what_is_bound_by_weights_gains_the_ratio_of_the_bytes_at_most() -> None:
    reason = Sparsify.propose(situation(4096, "a100", positions=1)).reason
    assert float(reason.split("(")[1].split("x")[0]) == pytest.approx(16 / 9, abs=0.02)


def test_what_is_bound_by_activations_gains_nothing() -> None:
    proposal = Sparsify.propose(situation(256, "rtx-4090", positions=1 << 20))
    assert proposal.compression is None and proposal.reason.endswith("no gain.")


@pytest.mark.parametrize(
    ("width", "target", "budget", "said"),
    [
        (1024, "x86-avx512-vnni", WATCHED, "compute with 2:4 sparsity, and its files store zeros as any number"),
        (1024, "iphone-15", WATCHED, "zeros only make files smaller there"),
        (128, "a100", WATCHED, "win from about 256 channels; the widest layer that could be 2:4 has 128"),
        (100, "a100", WATCHED, "the widest layer that could be 2:4 has 0"),
        (1024, "a100", Budget(), "It costs accuracy: give a metric and Budget(metric_drop=…)"),
    ],
)  # fmt: skip
def test_the_plan_says_why_it_leaves_sparsity_out(width: int, target: str, budget: Budget, said: str) -> None:
    proposal = Sparsify.propose(situation(width, target, budget))
    assert proposal.compression is None
    assert said in proposal.reason


def test_where_int8_runs_its_rates_count() -> None:
    of = situation(1024, "a100")
    assert "by the roofline in int8" in Sparsify.propose(Situation(of.program, of.profile, SCHEME, WATCHED)).reason
