from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import planish
from planish.compiler.errors import UserError
from planish.compiler.program import Program
from planish.compiler.training_data import Batch, TrainingData
from planish.passes.training.fit import fit
from planish.passes.training.model import masked
from planish.passes.training.settings import Training
from planish.passes.training.weights import tensors_of
from tests.passes.training.tasks import (
    FEATURES,
    Net,
    accuracy,
    assert_same_tensors,
    cross_entropy,
    data,
    examples,
    loader,
    program,
)

FP32 = partial(Training, precision="fp32", learning_rate=0.05)


def bare_loop(model: nn.Module, batches: list[tuple[Tensor, Tensor]], epochs: int, rate: float, decay: float) -> None:
    """The reference: SGD with Nesterov momentum and a cosine schedule, as a PyTorch tutorial writes it."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    steps = epochs * len(batches)
    step = 0
    model.train()
    for _ in range(epochs):
        for x, y in batches:
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            step += 1
    model.eval()


def test_the_loop_computes_what_a_bare_pytorch_loop_computes() -> None:
    torch.manual_seed(1)
    model = Net(dropout=0.0)
    start = planish.trace(model, torch.zeros(2, FEATURES)).copy()
    batches = [*loader(shuffle=False)]
    trained = fit(start, TrainingData(batches), cross_entropy, FP32(epochs=3, weight_decay=1e-3)).program
    bare_loop(model, batches, 3, 0.05, 1e-3)
    expected = model.state_dict()
    del expected["norm.num_batches_tracked"]  # counted by the module, not by the operator
    found = trained.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_training_wins_and_its_weights_load_into_the_model() -> None:
    model = Net()
    trained = fit(
        planish.trace(model, torch.zeros(2, FEATURES)), data(), cross_entropy, FP32(epochs=12), metric=accuracy
    )
    records = trained.history.records
    assert records[0].metric is not None and records[0].metric < 0.5
    assert accuracy(trained.program) == max(record.metric or 0 for record in records) > 0.8
    model.load_state_dict(trained.program.state_dict())
    x, _ = examples()
    torch.testing.assert_close(model.eval()(x), trained.program(x))


def test_the_model_and_its_program_are_left_as_they_were() -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = planish.trace(model, torch.zeros(2, FEATURES))
    trained = fit(start, data(), cross_entropy, FP32(steps=3)).program
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    theirs = {tensor.data_ptr() for tensor in tensors_of(model).values()}
    assert theirs.isdisjoint(tensor.data_ptr() for tensor in tensors_of(trained.graph_module).values())
    assert all(parameter.grad is None for parameter in (*model.parameters(), *trained.parameters()))


def test_the_users_random_numbers_go_on_as_if_nothing_had_been_trained() -> None:
    own = torch.Generator().manual_seed(5)
    source, start = data(generator=own), program()

    def drawn() -> tuple[Any, ...]:
        return random.random(), np.random.rand(), torch.rand(1).item(), torch.rand(1, generator=own).item()

    def seeded() -> None:
        for seed in (random.seed, np.random.seed, torch.manual_seed, own.manual_seed):
            seed(1)

    seeded()
    expected = drawn()
    seeded()
    fit(start, source, cross_entropy, FP32(steps=2))
    assert drawn() == expected


def test_a_seed_decides_everything_and_another_one_changes_it() -> None:
    def trained(seed: int) -> Program:
        torch.manual_seed(seed + 100)  # what was drawn before does not matter
        return fit(program(), data(), cross_entropy, FP32(steps=8, seed=seed)).program

    assert_same_tensors(trained(0), trained(0))
    with pytest.raises(AssertionError):
        assert_same_tensors(trained(0), trained(1))


def test_the_order_of_the_data_does_not_depend_on_what_the_model_draws() -> None:
    seen: dict[float, list[Tensor]] = {}

    def watching(outputs: Tensor, batch: Batch, dropout: float) -> dict[str, Tensor]:
        seen.setdefault(dropout, []).append(batch.inputs.args[0])
        return cross_entropy(outputs, batch)

    for dropout in (0.0, 0.5):
        fit(program(dropout=dropout), data(), partial(watching, dropout=dropout), FP32(epochs=2))
    assert all(torch.equal(one, other) for one, other in zip(seen[0.0], seen[0.5], strict=True))
    assert not torch.equal(torch.cat(seen[0.0][:6]), torch.cat(seen[0.0][6:]))  # each epoch has an order of its own


def test_batches_accumulate_to_the_step_of_one_large_batch() -> None:
    whole = fit(program(dropout=0.0, norm=False), data(96, shuffle=False), cross_entropy, FP32(steps=4)).program
    small = data(32, shuffle=False)
    parts = fit(program(dropout=0.0, norm=False), small, cross_entropy, FP32(steps=4, accumulation=3)).program
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_last_smaller_batch_counts_by_its_rows() -> None:
    x, y = examples(48)
    together = TrainingData([(x, y)])
    uneven = TrainingData([(x[:40], y[:40]), (x[40:], y[40:])])
    one = fit(program(dropout=0.0, norm=False), together, cross_entropy, FP32(steps=1)).program
    two = fit(program(dropout=0.0, norm=False), uneven, cross_entropy, FP32(steps=1, accumulation=2)).program
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("bounds", "steps"), [({"epochs": 2}, 12), ({"epochs": 1.5}, 9), ({"steps": 7}, 7), ({"epochs": 2, "steps": 5}, 5)]
)
def test_the_first_bound_that_is_reached_ends_training(bounds: dict[str, Any], steps: int) -> None:
    history = fit(program(), data(), cross_entropy, FP32(**bounds)).history
    assert history.steps == history.records[-1].step == steps
    assert history.stopped == "all steps taken"


def test_minutes_end_training_and_the_rate_has_fallen_to_zero_by_then() -> None:
    made: list[torch.optim.Optimizer] = []

    def optimizer(groups: Any, lr: float) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(groups, lr=lr))
        return made[0]

    history = fit(program(), data(), cross_entropy, FP32(minutes=0.01, optimizer=optimizer)).history
    assert history.stopped == "0.01 minutes are over" and 0.6 <= history.seconds < 30
    assert {group["lr"] for group in made[0].param_groups} == {0.0}


def test_the_best_weights_are_returned_and_patience_ends_training() -> None:
    scores = iter([0.1, 0.5, 0.9, 0.4, 0.3, 0.2, 0.1])
    kept: list[dict[str, Tensor]] = []

    def metric(run: Callable[..., Any]) -> float:
        assert isinstance(run, Program)
        kept.append({name: tensor.clone() for name, tensor in run.state_dict().items()})
        return next(scores)

    trained = fit(program(), data(), cross_entropy, FP32(epochs=50, patience=2), metric=metric)
    assert trained.history.stopped == "no better metric in 2 evaluations"
    assert trained.history.best == 12 and len(kept) == 5
    assert all(torch.equal(tensor, kept[2][name]) for name, tensor in trained.program.state_dict().items())


def test_training_that_only_harms_returns_the_weights_from_before_it() -> None:
    start = program()
    scores = iter([0.9, 0.5, 0.4, 0.3])
    trained = fit(start, data(), cross_entropy, FP32(epochs=3), metric=lambda run: next(scores))
    assert trained.history.best == 0
    assert_same_tensors(trained.program, start)


def test_the_average_of_the_weights_is_what_a_plain_formula_gives() -> None:
    seen: list[Tensor] = []
    average: Tensor | None = None

    def watch(running: Program, share: float) -> None:
        nonlocal average
        weight = running.state_dict()["first.weight"].double()
        seen.append(weight.clone())
        count = len(seen) - 1
        decay = min(0.9, (1 + count) / (10 + count))
        average = weight.clone() if average is None else decay * average + (1 - decay) * weight

    trained = fit(program(), data(), cross_entropy, FP32(steps=15, averaging=0.9), after_step=watch).program
    assert average is not None and len(seen) == 16
    torch.testing.assert_close(trained.state_dict()["first.weight"].double(), average, rtol=1e-5, atol=1e-6)


def test_masked_weights_stay_zero_through_training_and_averaging() -> None:
    mask = torch.rand(16, FEATURES) > 0.5
    training = FP32(epochs=2, averaging=0.9, weight_decay=0.1)
    trained = fit(
        program(), data(), cross_entropy, training, after_step=masked({"first.weight": mask}), metric=accuracy
    )
    weight = trained.program.state_dict()["first.weight"]
    assert (weight[~mask] == 0).all() and (weight[mask] != 0).all()


def test_a_penalty_draws_the_weights_that_it_names() -> None:
    def lasso(running: Program) -> dict[str, Tensor]:
        return {"lasso": 0.1 * running.graph_module.get_parameter("first.weight").norm(dim=0).sum()}

    def norms(penalty: Callable[[Program], dict[str, Tensor]] | None) -> Tensor:
        trained = fit(program(), data(), cross_entropy, FP32(epochs=4), penalty=penalty)
        assert trained.history.records[-1].losses.keys() == ({"hard", "lasso"} if penalty else {"hard"})
        return trained.program.state_dict()["first.weight"].norm(dim=0)

    assert norms(lasso).sum() < 0.7 * norms(None).sum()


def test_frozen_statistics_stay_and_the_rest_is_trained() -> None:
    start = program()
    frozen = fit(start, data(), cross_entropy, FP32(steps=4, frozen_statistics=True)).program.state_dict()
    moving = fit(start, data(), cross_entropy, FP32(steps=4)).program.state_dict()
    assert torch.equal(frozen["norm.running_mean"], start.state_dict()["norm.running_mean"])
    assert not torch.equal(moving["norm.running_mean"], start.state_dict()["norm.running_mean"])
    assert not torch.equal(frozen["norm.weight"], start.state_dict()["norm.weight"])


def test_parameters_that_ask_for_no_gradient_stay_unless_none_asks() -> None:
    model = Net()
    model.first.requires_grad_(False)
    trained = fit(planish.trace(model, torch.zeros(2, FEATURES)), data(), cross_entropy, FP32(steps=2)).program
    assert torch.equal(trained.state_dict()["first.weight"], model.first.weight)
    model.requires_grad_(False)
    trained = fit(planish.trace(model, torch.zeros(2, FEATURES)), data(), cross_entropy, FP32(steps=2)).program
    assert not torch.equal(trained.state_dict()["first.weight"], model.first.weight)


def test_an_objective_with_parameters_is_trained_along_and_stays_out_of_the_program() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
            return {"hard": F.cross_entropy(outputs * self.scale, batch.labels)}

    objective = Projected()
    trained = fit(program(), data(), objective, FP32(steps=5)).program
    assert objective.scale.item() != 1
    assert trained.state_dict().keys() == program().state_dict().keys()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "adagrad"])
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    records = fit(
        program(dropout=0.0), data(), cross_entropy, Training(epochs=4, optimizer=name, precision="fp32")
    ).history
    assert records.records[-1].losses["hard"] < records.records[1].losses["hard"]


def test_bf16_trains_float32_weights() -> None:
    trained = fit(
        program(), data(), cross_entropy, Training(epochs=8, learning_rate=0.05, precision="bf16"), metric=accuracy
    )
    assert {parameter.dtype for parameter in trained.program.parameters()} == {torch.float32}
    assert accuracy(trained.program) > 0.7


# ---------------------------------------------------------------------- what can be wrong


def test_a_loss_that_is_not_finite_is_told_with_step_batch_and_terms() -> None:
    def objective(outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        calls.append(batch)
        broken = torch.tensor(torch.nan) if len(calls) == 9 else outputs.sum() * 0
        return {**cross_entropy(outputs, batch), "extra": broken}

    calls: list[Batch] = []
    with pytest.raises(UserError, match=r"not finite at step 8 \(batch 2 of epoch 1\): hard \d.*, extra nan"):
        fit(program(), data(), objective, FP32(epochs=3))


def test_nan_in_the_data_is_told_as_such() -> None:
    x, y = examples()
    x[70] = torch.nan
    source = TrainingData([(x[:64], y[:64]), (x[64:], y[64:])])
    with pytest.raises(UserError, match=r"NaN.*batch 1 of epoch 0"):
        fit(program(), source, cross_entropy, FP32(epochs=1))


@pytest.mark.parametrize("metric", [lambda run: 1 / 0, lambda run: math.nan])
def test_a_metric_that_fails_is_the_users_turn(metric: Callable[..., float]) -> None:
    with pytest.raises(UserError, match="Mend the metric"):
        fit(program(), data(), cross_entropy, FP32(steps=1), metric=metric)


def test_epochs_need_data_that_knows_its_length() -> None:
    class Endless:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([examples()])

    with pytest.raises(UserError, match="Bound the training by steps or minutes"):
        fit(program(), TrainingData(Endless()), cross_entropy, FP32(epochs=1))
    assert fit(program(), TrainingData(Endless()), cross_entropy, FP32(steps=2)).history.steps == 2


def test_data_without_batches_is_told_and_does_not_hang() -> None:
    class Empty:
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    sources: list[Any] = [[], Empty()]
    for source in sources:
        with pytest.raises(UserError, match="at least one batch; it is empty"):
            fit(program(), TrainingData(source), cross_entropy, FP32(steps=2))
