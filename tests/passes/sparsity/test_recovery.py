from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.training_data import TrainingData
from planish.passes.distill.distill import Distill
from planish.passes.sparsify import Sparsify
from planish.passes.sparsity.layers import find_layers
from planish.passes.sparsity.patterns import Blocks, NOfM, Pattern
from planish.passes.sparsity.recovery import divided, thinning
from planish.passes.sparsity.walk import weight_of
from planish.passes.training.recover import SPARSE, recover
from planish.passes.training.settings import Training
from tests.passes.nets import traced
from tests.passes.test_sparsify import is_two_four

STEPS = Training(steps=30, learning_rate=0.1, precision="fp32", weight_decay=0.0)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(96, 3, 6, 6, generator=generator), torch.arange(96) % 4
    x += 0.7 * y[:, None, None, None]
    return [*zip(x.split(16), y.split(16), strict=True)]


def accuracy(run: Any) -> float:
    with torch.no_grad():
        return float(torch.cat([run(x).argmax(1) == y for x, y in batches()]).float().mean())


def situation(metric: Any = None) -> Context:
    calibration = Calibration([Inputs((x,)) for x, _ in batches()], "given")
    train = TrainingData(batches())
    return Context(registry().find_profile("a100"), None, calibration, train=train, metric=metric)


def sparse(told: Context, **options: Any) -> tuple[Program, Program]:
    torch.manual_seed(0)
    program = traced(net(), batches()[0][0][:2])
    return program, Sparsify(**options).run(program, told)


def zeros(program: Program) -> dict[str, Tensor]:
    return {layer.name: weight_of(program, layer) == 0 for layer in find_layers(program)[0]}


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
def test_zeros_stay_through_training_with_momentum_and_averaging(criterion: str) -> None:
    told = situation()
    training = Training(steps=30, learning_rate=0.1, averaging=0.9, precision="fp32")
    program, made = sparse(told, criterion=criterion, permute=False, training=training)
    _, one_shot = sparse(situation(), criterion=criterion, permute=False)
    before, after = zeros(one_shot), zeros(made)
    assert all(bool((before[name] <= after[name]).all()) for name in before)
    changed = weight_of(made, find_layers(made)[0][1]) != weight_of(program, find_layers(program)[0][1])
    assert bool(changed.any()) and told.notes and told.notes[0].startswith("Trained 30 steps")
    weights = made.state_dict()
    assert is_two_four(weights["3.weight"]) and is_two_four(weights["8.weight"])
    assert not bool((weights["0.weight"] == 0).any())


def test_every_later_training_keeps_the_zeros() -> None:
    _, made = sparse(situation(), permute=False)
    held = recover(made, situation(), STEPS).program.state_dict()
    unmarked = made.fork()
    for node in unmarked.graph.nodes:
        node.meta.pop(SPARSE, None)
    loose = recover(unmarked, situation(), STEPS).program.state_dict()
    assert not is_two_four(loose["3.weight"])
    assert is_two_four(held["3.weight"]) and is_two_four(held["8.weight"])
    assert not torch.equal(held["3.weight"], made.state_dict()["3.weight"])
    assert not bool((held["0.weight"] == 0).any())


def test_distillation_around_the_pass_keeps_the_zeros() -> None:
    told = situation()
    program, _ = sparse(told, permute=False)
    told.original = program
    student = Distill(inner=(Sparsify(permute=False),), training=STEPS).run(program, told).state_dict()
    assert is_two_four(student["3.weight"]) and is_two_four(student["8.weight"])
    assert not torch.equal(student["0.weight"], program.state_dict()["0.weight"])


def test_training_brings_back_what_zeros_cost() -> None:
    _, one_shot = sparse(situation(), pattern="unstructured", ratio=0.9)
    _, trained = sparse(situation(accuracy), pattern="unstructured", ratio=0.9, training=STEPS)
    assert accuracy(trained) > accuracy(one_shot) + 0.2


@pytest.mark.parametrize("options", [{}, {"pattern": "unstructured", "ratio": 0.8}])
def test_a_ramp_ends_in_the_whole_pattern_and_a_metric_cannot_pick_fewer_zeros(options: dict[str, Any]) -> None:
    told = situation(accuracy)
    _, made = sparse(told, training=STEPS, ramp=0.5, **options)
    assert [note.split()[0] for note in told.notes] == ["Trained", "Trained", "NVIDIA"]
    if not options:
        assert is_two_four(made.state_dict()["3.weight"]) and is_two_four(made.state_dict()["8.weight"])
    else:
        found = zeros(made)
        assert sum(int(z.sum()) for z in found.values()) / sum(z.numel() for z in found.values()) >= 0.799


@pytest.mark.parametrize(("pattern", "ratio"), [(NOfM(2, 4), 0.5), (Blocks(), 0.8), (Blocks(4, 4), 0.5)])
def test_the_schedule_is_cubic_and_the_smallest_go_first(pattern: Pattern, ratio: float) -> None:
    program = traced(nn.Linear(32, 16), torch.randn(2, 32)).copy()
    layers = find_layers(program)[0]
    whole = weight_of(program, layers[0]).clone()
    step = thinning(layers, {layers[0]: ratio}, pattern)
    gone: list[Tensor] = []
    for done in (0.0, 0.25, 0.5, 1.0):
        with torch.no_grad():
            step(program, done)
        gone.append(weight_of(program, layers[0]) == 0)
        share = float(gone[-1].float().mean()) / ratio
        assert share == pytest.approx(1 - (1 - done) ** 3, abs=0.01)
    assert all(bool((earlier <= later).all()) for earlier, later in itertools.pairwise(gone))
    early, late = whole[gone[1]].abs(), whole[gone[3] & ~gone[1]].abs()
    assert float(early.max()) <= float(late.min())


def test_training_is_resumed_to_the_same_zeros(tmp_path: Path) -> None:
    training = Training(steps=12, learning_rate=0.1, precision="fp32", checkpoint=str(tmp_path))
    _, whole = sparse(situation(), training=training, ramp=0.5)
    _, again = sparse(situation(), training=training, ramp=0.5)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))
    assert {path.name for path in tmp_path.iterdir()} == {"sparse", "thinning"}


@pytest.mark.parametrize("bound", [{"epochs": 0.5}, {"minutes": 0.001}])
@pytest.mark.parametrize("ramp", [0.0, 0.5])
def test_any_bound_ends_a_training_with_and_without_a_ramp(bound: dict[str, Any], ramp: float) -> None:
    _, made = sparse(situation(), permute=False, training=Training(**bound, precision="fp32"), ramp=ramp)
    assert is_two_four(made.state_dict()["3.weight"])


def test_every_bound_of_the_training_is_divided() -> None:
    thin, rest = divided(Training(epochs=4, steps=10, minutes=2), 0.25)
    assert (thin.epochs, thin.steps, thin.minutes) == (1, 2, 0.5) and (rest.epochs, rest.steps, rest.minutes) == (
        3,
        8,
        1.5,
    )


def test_missing_data_and_wrong_ramps_are_told() -> None:
    told = situation()
    told.train = None
    with pytest.raises(UserError, match="Pass train=loader"):
        sparse(told, training=STEPS)
    with pytest.raises(UserError, match="at least 0 and below 1, not 1"):
        Sparsify(training=STEPS, ramp=1)
    with pytest.raises(UserError, match=r"Give Sparsify\(ramp=…\) a training"):
        Sparsify(ramp=0.5)
