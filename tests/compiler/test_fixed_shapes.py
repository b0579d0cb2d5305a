from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish
from planish.compiler.fixed_shapes import with_one_row
from planish.compiler.inputs import Inputs
from planish.compiler.rules import verify
from planish.compiler.shapes import propagate
from planish.compiler.trace import trace
from tests.backends.to_onnx.family_layers import families

FAMILIES = {family.name: family for family in families()}
aten = torch.ops.aten


@pytest.mark.parametrize("name", [*FAMILIES][::4])
def test_a_program_for_one_row_computes_what_the_program_for_any_does(name: str) -> None:
    family = FAMILIES[name]
    torch.manual_seed(0)
    program = trace(family.build().eval(), family.inputs(3))
    fixed = with_one_row(program)
    if not program.dynamic_axes:
        assert fixed is program
        return
    verify(fixed, "fixing the shapes")
    row = fixed.example_inputs
    assert fixed.dynamic_axes == {} and row.batch_size == 1
    with torch.no_grad():
        ours = torch.utils._pytree.tree_leaves(row.call(fixed))
        wanted = torch.utils._pytree.tree_leaves(row.call(program))
    for one, other in zip(ours, wanted, strict=True):
        assert not isinstance(one, Tensor) or torch.equal(one, other)
    propagate(fixed)
    assert not [*fixed.calls(aten.sym_size.int)]
    assert not [node for node in fixed.calls() if isinstance(node.meta["val"], (int, float))]


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] * 2, x.shape[1] // 2) + x.shape[0]


def test_sizes_that_the_graph_computes_become_numbers_and_the_program_itself_keeps_its_own() -> None:
    program = trace(Flat(), Inputs((torch.randn(4, 6),)))
    before = str(program.graph)
    fixed = with_one_row(program)
    assert torch.equal(fixed(torch.ones(1, 6)), torch.full((2, 3), 2.0))
    assert str(program.graph) == before and program(torch.ones(5, 6)).shape == (10, 3)


def test_a_metric_may_call_files_of_one_row_with_several() -> None:
    model = nn.Linear(8, 4).eval()
    seen = []

    def metric(run: Any) -> float:
        seen.append(run(torch.eye(8)).shape)
        return float(run(torch.eye(8)).sum())

    result = planish.compile(model, "raspberry-pi-5", torch.randn(2, 8), metric=metric, passes=[])
    assert {*seen} == {(8, 4)}
    baseline = result.report.baseline
    assert baseline is not None and baseline.metric == pytest.approx(
        float(model(torch.eye(8)).detach().sum()), abs=1e-4
    )


@pytest.mark.slow
def test_a_phone_is_trained_with_the_batches_of_the_user() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    train = [(torch.randn(8, 3, 8, 8), torch.randint(4, (8,))) for _ in range(2)]
    passes = [planish.Distill(inner=(planish.QuantizeInt8(samples=8),), steps=2)]
    rows = [batch for batch, _ in train]
    result = planish.compile(model, "raspberry-pi-5", calibration=rows, train=train, passes=passes)
    assert [step.compression for step in result.report.steps][-1] == "distill"
    assert result.run(torch.randn(1, 3, 8, 8)).shape == (1, 4)
