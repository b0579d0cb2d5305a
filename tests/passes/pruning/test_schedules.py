"""Cuts in steps with training, and training towards zero."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.cost import totals
from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.groups import couple
from planish.compiler.errors import UserError
from planish.compiler.program import Program
from planish.compiler.training_data import TrainingData
from planish.passes.prune_channels import PruneChannels
from planish.passes.pruning.schedules import Gradual, GroupLasso, Penalty
from planish.passes.pruning.selection import select
from planish.passes.training.settings import Training
from tests.passes.nets import profile, traced

QUICK = Training(steps=60, learning_rate=0.1, weight_decay=0)


def task() -> tuple[Program, Context, Tensor, Tensor]:
    """Two classes of vectors, and a wide network that has learnt to tell them apart."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    labels = (x[:, :4].sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    data = TrainingData([(x[start : start + 64], labels[start : start + 64]) for start in range(0, 256, 64)])
    return traced(model, x[:2]), Context(profile(), None, Calibration([], "drawn"), train=data), x, labels


class Shuffled(nn.Module):
    """Channels in two factors, of 2 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).unflatten(1, (2, 4)).transpose(1, 2).relu().flatten(1))
        return y


def accuracy(program: Program, x: Tensor, labels: Tensor) -> float:
    return float((program(x).argmax(1) == labels).float().mean())


def test_the_cubic_curve_is_that_of_gradual_pruning() -> None:
    assert Gradual(4).progress() == pytest.approx([1 - (1 - k / 4) ** 3 for k in (1, 2, 3, 4)])
    assert Gradual(4, "linear").progress() == pytest.approx([0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("scope", ["global", "local"])
def test_steps_reach_the_whole_ratio_and_training_wins_back_what_was_lost(scope: str) -> None:
    program, context, x, labels = task()
    options: dict[str, Any] = {"ratio": 0.8, "granularity": 1, "criterion": "random", "scope": scope}
    at_once = PruneChannels(**options).run(program, context)
    context.notes.clear()
    gradual = PruneChannels(**options, schedule=Gradual(3, training=QUICK)).run(program, context)
    assert 0.8 <= 1 - totals(gradual).macs / totals(program).macs < 0.85
    assert accuracy(gradual, x, labels) > accuracy(at_once, x, labels) + 0.03
    assert accuracy(gradual, x, labels) > 0.9
    assert [note.split()[0] for note in context.notes] == [*3 * ["Fitted", "Trained"], "Removed"]
    assert any(decision.outcome.startswith("32 -> ") for decision in context.decisions)


def test_limits_hold_over_all_steps_together() -> None:
    program, context, _, _ = task()
    zero = {"0": 0.75, "2": 0.5}
    pruned = PruneChannels(ratio=0, ratios=zero, granularity=1, schedule=Gradual(3, training=Training(steps=1))).run(
        program, context
    )
    assert [len(pruned.state_dict()[f"{layer}.weight"]) for layer in (0, 2)] == [8, 16]

    options: dict[str, Any] = {"ratio": 0.5, "most": 0.5, "granularity": 1}
    narrow = PruneChannels(**options, schedule=Gradual(3, training=Training(steps=1))).run(program, context)
    assert min(len(narrow.state_dict()[f"{layer}.weight"]) for layer in (0, 2)) >= 16


def test_a_factor_that_is_gone_leaves_their_widths_to_those_it_was_nested_with() -> None:
    _, context, _, _ = task()
    coupling = couple(traced(Shuffled(), torch.randn(2, 3)))
    assert [group.width for group in coupling.groups] == [2, 4]
    selection = select(PruneChannels(ratio=0, ratios={coupling.groups[0].name: 0.5}, granularity=1), coupling, context)
    left = couple(cut(coupling, selection.removed))
    following = select(PruneChannels(ratio=0, granularity=1), left, context, start=selection.start)
    assert [*following.first.values()] == [group.width for group in left.groups] == [4]


def test_steps_after_all_is_gone_that_may_go_change_nothing() -> None:
    program, context, _, _ = task()
    coarse = {"ratio": 0.3, "most": 0.5, "granularity": 16, "scope": "local"}
    pruned = PruneChannels(**coarse, schedule=Gradual(4, "linear", Training(steps=1))).run(program, context)  # type: ignore[arg-type]
    assert sorted(len(pruned.state_dict()[f"{layer}.weight"]) for layer in (0, 2)) in ([16, 16], [16, 32])


def test_training_needs_data() -> None:
    program, context, _, _ = task()
    context.train = None
    with pytest.raises(UserError, match="train=loader"):
        PruneChannels(schedule=Gradual()).run(program, context)
    with pytest.raises(UserError, match="train=loader"):
        PruneChannels(before=GroupLasso()).run(program, context)


def test_the_group_lasso_sums_norms_of_coupled_weights() -> None:
    program, _, _, _ = task()
    coupling = couple(program)
    found = Penalty(coupling, [*coupling.groups], 0.5)(coupling.program)["group lasso"]
    state = program.state_dict()
    expected = 0.0
    for layer, behind in ((0, 2), (2, 4)):
        for unit in range(32):
            row, column = state[f"{layer}.weight"][unit], state[f"{behind}.weight"][:, unit]
            own = torch.cat([row, state[f"{layer}.bias"][unit, None], column]).double()
            expected += 0.5 * math.sqrt(len(own)) * float(own.norm())
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_group_lasso_of_zeros_has_a_gradient_of_zero() -> None:
    program = traced(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3))
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.zero_()
    coupling = couple(program)
    Penalty(coupling, [*coupling.groups], 1.0)(coupling.program)["group lasso"].backward()
    assert all(p.grad is None or not p.grad.any() for p in coupling.program.parameters())


def test_training_towards_zero_makes_units_small_that_then_go_for_less() -> None:
    program, context, x, labels = task()
    options: dict[str, Any] = {"ratio": 0.7, "granularity": 1, "scope": "local"}
    plain = PruneChannels(**options).run(program, context)
    lasso = GroupLasso(2e-4, Training(steps=300, learning_rate=0.1, weight_decay=0))
    sparse = PruneChannels(**options, before=lasso).run(program, context)
    assert totals(sparse).macs == totals(plain).macs
    assert accuracy(sparse, x, labels) >= accuracy(plain, x, labels)
    assert accuracy(sparse, x, labels) > 0.95


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Gradual(0), "steps=…. a whole number"),
        (lambda: Gradual(curve="cubik"), "did you mean 'cubic'"),
        (lambda: GroupLasso(0), "a number above 0"),
    ],
)
def test_settings_that_do_not_fit_are_told(make: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make()


def test_schedules_survive_a_plan() -> None:
    made = PruneChannels(before=GroupLasso(1e-4), schedule=Gradual(5, "linear", Training(steps=3)))
    assert PruneChannels.from_options(made.options()) == made
