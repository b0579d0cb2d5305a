from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.contracts import Budget, Situation
from planish.compiler.hardware import HardwareProfile
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.targets import find_backend
from planish.passes.sparsify import Sparsify
from planish.passes.sparsity.gains import gained
from planish.passes.sparsity.patterns import Blocks, NOfM, Pattern
from tests.passes.nets import SCHEME, traced

WATCHED = Budget(metric_drop=0.01)


def situation(width: int, target: str, budget: Budget = WATCHED, positions: int = 4096) -> Situation:
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    return Situation(traced(model, torch.randn(1, positions, width)), profile(target), None, budget)


def profile(target: str) -> HardwareProfile:
    return registry().find_profile(target)


def test_wide_layers_are_proposed_where_the_device_has_the_rates_and_a_loss_is_judged() -> None:
    proposal = Sparsify.propose(situation(1024, "a100"))
    assert proposal.compression == Sparsify(min_channels=256)
    assert proposal.reason.startswith("2 layers of at least 256 channels in 2:4 would take ")


def test_what_is_bound_by_arithmetic_gains_the_ratio_of_the_rates_at_most() -> None:
    reason = Sparsify.propose(situation(4096, "a100", positions=1024)).reason
    gain = float(reason.split("(")[1].split("x")[0])
    assert 1.5 < gain <= 2


def test_what_is_bound_by_weights_gains_the_ratio_of_the_bytes_at_most() -> None:
    reason = Sparsify.propose(situation(4096, "jetson-orin", positions=1)).reason
    assert float(reason.split("(")[1].split("x")[0]) == pytest.approx(16 / 9, abs=0.02)


def test_what_is_bound_by_activations_gains_nothing() -> None:
    proposal = Sparsify.propose(situation(256, "rtx-4090", positions=1 << 14))
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


@pytest.mark.parametrize(
    ("target", "pattern", "said"),
    [
        ("a100", NOfM(2, 4), "computes 2:4 where its runtime picks sparse kernels, and the file is as large as before"),
        ("a100", Blocks(), "gains nothing from these zeros: they are stored and computed as any number"),
        ("iphone-15", Blocks(), "computes zeros as any number; its files can store them packed"),
        ("pixel-8", Blocks(), "gains nothing from these zeros"),
        ("x86-avx512-vnni", Blocks(), "gains nothing from these zeros"),
    ],
)
def test_the_report_says_what_the_files_of_each_backend_store(target: str, pattern: Pattern, said: str) -> None:
    model = nn.Linear(256, 256)
    with torch.no_grad():
        model.weight[:, 26:] = 0
    told = gained(traced(model, torch.randn(1, 256)), pattern, profile(target))
    assert said in told
    assert re.search(r"Program.save packs the tensors: 0.263 -> 0.027\d MB", told), "a tenth of the values, and places"


# ---------------------------------------------------------------------- every profile that ships


class Encoder(nn.Module):
    """A layer of BERT-base: six products of at least 768 channels."""

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 64)).transpose(1, 2) for each in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm(x + self.out(mixed))
        result: Tensor = x + self.down(nn.functional.gelu(self.up(x)))
        return result


class Bottleneck(nn.Module):
    """A block of ResNet-50."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(4 * width, width, 1), nn.Conv2d(width, 4 * width, 1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.middle(self.reduce(x).relu()).relu())
        return (x + y).relu()


@cache
def program(name: str) -> Program:
    model, shape = {
        "an encoder": (Encoder(), (1, 128, 768)),
        "a late block": (Bottleneck(256), (1, 1024, 14, 14)),
        "an early block": (Bottleneck(64), (1, 256, 56, 56)),
        "a narrow encoder": (Encoder(128), (1, 128, 128)),
    }[name]
    return traced(model, torch.randn(shape))


@pytest.mark.parametrize("target", sorted(registry().profiles))
@pytest.mark.parametrize(
    ("name", "wide", "widest"),
    [("an encoder", 6, 768), ("a late block", 3, 256), ("an early block", 0, 64), ("a narrow encoder", 0, 128)],
)
def test_the_plan_uses_two_four_where_the_profile_says_that_it_gains(
    target: str, name: str, wide: int, widest: int
) -> None:
    device = profile(target)
    of = Situation(program(name), device, find_backend(device, None)[0].scheme(device), WATCHED)
    proposal = Sparsify.propose(of)
    if "2:4" not in device.support.sparsity:
        assert proposal.compression is None and "does not compute with 2:4 sparsity" in proposal.reason
        return
    least = device.support.sparse_min_channels
    assert least is not None and least.source in device.sources
    if widest < least.value:
        assert proposal.compression is None and proposal.reason.endswith(f"could be 2:4 has {widest}.")
        return
    assert proposal.reason.startswith(f"{wide} layers of at least {least.value:g} channels in 2:4 would take ")
    (gain,) = re.findall(r"\((\d\.\d+)x as fast\)", proposal.reason)
    assert 1 <= float(gain) <= 2
    if float(gain) > 1.03:
        assert proposal.compression == Sparsify(min_channels=int(least.value))
    if float(gain) < 1.01:
        assert proposal.compression is None and "no gain" in proposal.reason
