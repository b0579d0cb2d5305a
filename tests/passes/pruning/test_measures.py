from __future__ import annotations

import pytest
import torch
from torch import nn

from planish.compiler.coupling.groups import couple
from planish.compiler.roofline import estimate_latency
from planish.compiler.widths import Widths
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.prune_channels import PruneChannels
from planish.passes.pruning.measures import EstimatedLatency, costs_of_nodes
from planish.passes.quantize_int8 import QuantizeInt8
from tests.passes.nets import SCHEME, context, profile, traced


def net(width: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10),
    )  # fmt: skip


X = torch.randn(2, 3, 8, 8)


def test_the_judge_and_the_passes_estimate_the_same_time() -> None:
    program = traced(net(), X)
    widths = Widths(couple(program))
    assert 1e3 * EstimatedLatency(widths, profile(), None, 1)({}) == pytest.approx(
        estimate_latency(program, profile()).median_ms
    )
    assert 1e3 * sum(costs_of_nodes("latency", widths, profile(), None).values()) == pytest.approx(
        estimate_latency(program, profile()).median_ms
    )


def test_the_time_foreseen_of_a_float_program_is_near_that_of_its_int8_program() -> None:
    program = traced(net(), X)
    foreseen = 1e3 * EstimatedLatency(Widths(couple(program)), profile(), SCHEME, 1)({})
    told = context(SCHEME, torch.randn(16, 3, 8, 8))
    quantized = QuantizeInt8().run(FoldBatchNorm().run(program, told), told)
    assert foreseen == pytest.approx(estimate_latency(quantized, profile()).median_ms, rel=0.15)


def test_what_is_foreseen_of_a_cut_is_what_the_cut_program_takes() -> None:
    program = traced(net(), X)
    pruned = PruneChannels(ratio=0.25, of="latency", granularity=8).run(program, context(None))
    widths = Widths(couple(program))
    left = {
        atom: pruned.state_dict()[name].shape[0]
        for name in ("0.weight", "3.weight")
        for atom in [widths.coupling.tensors[name][0].root()]
    }
    assert 1e3 * EstimatedLatency(widths, profile(), None, 1)(left) == pytest.approx(
        estimate_latency(pruned, profile()).median_ms
    )


def test_no_cut_saves_what_kernels_cost_by_being_there() -> None:
    """Overheads are fixed: with them a width buys a smaller share of the time."""
    slow = profile().model_copy(
        update={"kernel_overhead_us": {"fp32": profile().kernel_overhead_us["fp32"].model_copy(update={"value": 1e3})}}
    )
    widths = Widths(couple(traced(net(), X)))
    halved = {atom: atom.size // 2 for group in widths.coupling.groups for atom in group.units}
    shares = [EstimatedLatency(widths, each, None, 1)(halved) / EstimatedLatency(widths, each, None, 1)({})
              for each in (profile(), slow)]  # fmt: skip
    assert shares[0] < 0.9 < 0.99 < shares[1] <= 1
