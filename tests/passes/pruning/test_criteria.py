"""Importance of units against loops over units and weights, in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.coupling.groups import Coupling, Group, couple
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import get_attribute
from planish.compiler.trace import trace
from planish.compiler.training_data import TrainingData
from planish.passes.pruning.criteria import CRITERIA, Evidence, own
from planish.passes.pruning.gradients import gradients
from tests.compiler.coupling.nets import nets
from tests.passes.nets import profile

NETS = {family.name: family for family in nets()}
SOME = (
    "grouped convolution", "batch norm", "residual", "squeeze and excite", "cat with itself", "tied weights",
    "group norm over misaligned cat", "attention, grouped queries", "LSTM of two layers and directions",
    "outer product with itself", "transposed grouped convolution", "zero-padded shortcut",
)  # fmt: skip


@functools.cache
def coupled(name: str) -> Coupling:
    torch.manual_seed(0)
    family = NETS[name]
    return couple(trace(family.build().double().eval(), family.inputs(2).map(lambda leaf: leaf.double())))


def no_data(*_: Any) -> Iterator[Mapping[str, Tensor]]:
    raise AssertionError("this criterion reads no data")


def owned(coupling: Coupling, group: Group, unit: int, values: Mapping[str, Tensor]) -> list[Tensor]:
    """Every slice of a learned tensor that goes with ``unit``; tied tensors once."""
    slices, seen = [], set()
    for member in group.members:
        tensor = get_attribute(coupling.program.graph_module, member.tensor)
        if not member.learned or member.tensor not in values:
            continue
        key = (id(tensor), member.axis, tuple(member.units.tolist()))
        if key not in seen:
            seen.add(key)
            slices += [
                values[member.tensor].select(member.axis, index)
                for index, owner in enumerate(member.units.tolist())
                if owner == unit
            ]
    return slices


def loop(coupling: Coupling, group: Group, values: Mapping[str, Tensor]) -> Tensor:
    """The sum of ``values`` over all that each unit owns, one number after the other."""
    sums = [
        math.fsum(value for part in owned(coupling, group, unit, values) for value in part.flatten().tolist())
        for unit in range(group.width)
    ]
    return torch.tensor(sums, dtype=torch.float64)


def weights(coupling: Coupling) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in coupling.program.graph_module.named_parameters()}


@pytest.mark.parametrize("name", SOME)
def test_norms_are_those_of_all_that_a_unit_owns(name: str) -> None:
    coupling = coupled(name)
    given = weights(coupling)
    l1 = CRITERIA["l1"].score(coupling, Evidence(no_data, 0))
    l2 = CRITERIA["l2"].score(coupling, Evidence(no_data, 0))
    for group in coupling.groups:
        torch.testing.assert_close(l1[group], loop(coupling, group, {n: w.abs() for n, w in given.items()}))
        torch.testing.assert_close(l2[group], loop(coupling, group, {n: w.square() for n, w in given.items()}).sqrt())


@pytest.mark.parametrize("name", SOME)
def test_lamp_is_the_share_of_what_is_left_when_smaller_units_are_gone(name: str) -> None:
    coupling = coupled(name)
    found = CRITERIA["lamp"].score(coupling, Evidence(no_data, 0))
    for group in coupling.groups:
        squares = loop(coupling, group, {n: w.square() for n, w in weights(coupling).items()})
        expected = [float(own / squares[squares >= own].sum()) for own in squares]
        torch.testing.assert_close(found[group], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", ["grouped convolution", "batch norm", "attention, grouped queries"])
def test_fpgm_sums_distances_to_the_other_units(name: str) -> None:
    coupling = coupled(name)
    found = CRITERIA["fpgm"].score(coupling, Evidence(no_data, 0))
    for group in coupling.groups:
        parts = [owned(coupling, group, unit, weights(coupling)) for unit in range(group.width)]
        vectors = [torch.cat([part.flatten() for part in of]) for of in parts]
        expected = torch.stack([sum((a - b).norm() for b in vectors) for a in vectors])
        torch.testing.assert_close(found[group], expected, atol=1e-6, rtol=1e-6)


def test_batch_norm_ranks_by_its_scales_and_only_what_it_scales() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))
    nn.init.normal_(model[1].weight)  # type: ignore[arg-type]
    coupling = couple(trace(model.eval(), Inputs((torch.randn(2, 3, 4, 4),))))
    (scored,) = CRITERIA["batch-norm"].score(coupling, Evidence(no_data, 0)).items()
    assert scored[0].name == "0"
    torch.testing.assert_close(scored[1], model[1].weight.detach().abs().double())  # type: ignore[operator]


def test_batch_norm_says_when_there_is_none() -> None:
    with pytest.raises(UserError, match="Choose another criterion than batch-norm"):
        CRITERIA["batch-norm"].score(coupled("residual"), Evidence(no_data, 0))


def test_chance_follows_the_seed() -> None:
    coupling = coupled("residual")
    first, again, other = (CRITERIA["random"].score(coupling, Evidence(no_data, seed)) for seed in (1, 1, 2))
    for group in coupling.groups:
        assert torch.equal(first[group], again[group])
        assert not torch.equal(first[group], other[group])


# ---------------------------------------------------------------------- gradients


def labelled() -> tuple[Coupling, Context, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 4)
    ).double()
    data = [(torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randint(4, (5,))) for _ in range(2)]
    program = trace(model.eval(), Inputs((data[0][0],)))
    context = Context(profile(), None, Calibration([], "drawn"), train=TrainingData(data))
    return couple(program), context, data


def per_row(coupling: Coupling, data: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    found = []
    for images, labels in data:
        for image, label in zip(images, labels, strict=True):
            coupling.program.graph_module.zero_grad()
            nn.functional.cross_entropy(coupling.program(image[None]), label[None]).backward()
            found.append(
                {
                    name: p.grad.clone()
                    for name, p in coupling.program.graph_module.named_parameters()
                    if p.grad is not None
                }
            )
    return found


def evidence(coupling: Coupling, context: Context, rows: int = 100) -> Evidence:
    return Evidence(functools.partial(gradients, coupling.program, context, rows), 0)


def test_hessian_is_optimal_brain_damage_with_the_gradients_of_each_row() -> None:
    coupling, context, data = labelled()
    rows = per_row(coupling, data)
    found = CRITERIA["hessian"].score(coupling, evidence(coupling, context))
    saliency = {
        name: weight.square() * sum(row[name].square() for row in rows) / len(rows) / 2
        for name, weight in weights(coupling).items()
    }
    for group in coupling.groups:
        torch.testing.assert_close(found[group], loop(coupling, group, saliency))


def test_taylor_is_the_squared_change_of_the_loss_of_each_batch() -> None:
    coupling, context, data = labelled()
    rows = per_row(coupling, data)
    found = CRITERIA["taylor"].score(coupling, evidence(coupling, context))
    for group in coupling.groups:
        expected = torch.zeros(group.width, dtype=torch.float64)
        for batch in (rows[:5], rows[5:]):
            changes = {
                name: weight * sum(row[name] for row in batch) / len(batch)
                for name, weight in weights(coupling).items()
            }
            expected += loop(coupling, group, changes).square() / 2
        torch.testing.assert_close(found[group], expected)


def test_only_so_many_rows_are_read() -> None:
    coupling, context, data = labelled()
    given = weights(coupling)
    (found,) = gradients(coupling.program, context, 1, given, 1)
    torch.testing.assert_close(found["6.weight"], per_row(coupling, data)[0]["6.weight"])


def test_without_labels_gradients_are_those_of_a_projection_of_the_outputs() -> None:
    coupling, _, data = labelled()
    context = Context(profile(), None, Calibration([Inputs((data[0][0],))], "given"))
    (found,) = gradients(coupling.program, context, 5, weights(coupling), 5)
    projection = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(found["6.bias"], projection.sum(0))


def test_a_criterion_that_needs_data_says_so() -> None:
    coupling, context, _ = labelled()
    context.train = None
    with pytest.raises(UserError, match="what matters here is told by data"):
        CRITERIA["taylor"].score(coupling, evidence(coupling, context))


# ---------------------------------------------------------------------- the user's own


def test_a_function_of_the_users_scores_each_group() -> None:
    coupling = coupled("residual")
    scores = own(lambda _, group: torch.arange(group.width)).score(coupling, Evidence(no_data, 0))
    assert all(torch.equal(of, torch.arange(group.width).double()) for group, of in scores.items())


@pytest.mark.parametrize(
    ("returned", "told"),
    [(torch.zeros(3), r"a tensor \[8\].*not \[3\]"), (None, "not NoneType"), (torch.full((8,), math.nan), "finite")],
)
def test_scores_of_the_users_that_do_not_fit_are_told(returned: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        own(lambda *_: returned).score(coupled("residual"), Evidence(no_data, 0))
