from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import planish
from planish.compiler.contracts import Budget, Pass, Proposal, Situation, Stage
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.plan import REQUESTED, Plan, PlannedPass, as_plan, make_plan
from planish.compiler.trace import trace
from planish.passes.erase_noops import EraseNoOps
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.quantize_int8 import QuantizeInt8
from tests.compiler.fakes import Scale, vnni
from tests.compiler.models import Cnn


@dataclass(frozen=True)
class Late(Scale):
    name: ClassVar[str] = "late"
    stage: ClassVar[Stage] = Stage.PRECISION

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        return Proposal(cls(), "late")


@dataclass(frozen=True)
class Early(Late):
    name: ClassVar[str] = "early"
    stage: ClassVar[Stage] = Stage.CLEAN


@dataclass(frozen=True)
class Left(Late):
    name: ClassVar[str] = "left"

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        return Proposal(None, "for a reason")


def situation() -> Situation:
    return Situation(trace(nn.Linear(4, 3), Inputs((torch.randn(2, 4),))), vnni(), None, Budget())


def test_a_plan_has_the_passes_that_propose_themselves_in_the_order_of_their_stages() -> None:
    plan = make_plan(situation(), [Late, Scale, Left, Early])
    assert [step.compression for step in plan] == [Early(), Late()]
    assert plan.left_out == {"left": "for a reason"}
    assert not any(step.requested for step in plan)


def test_a_plan_prints_each_pass_with_its_reason() -> None:
    text = str(make_plan(situation(), [Late, Left]))
    assert text.splitlines()[0].startswith("1. Late(") and text.splitlines()[0].endswith(": late")
    assert "left left out: for a reason" in text


def test_the_plan_of_a_real_model_has_a_reason_with_figures() -> None:
    plan = planish.plan(Cnn().eval(), "x86-avx512-vnni", torch.randn(2, 3, 8, 8))
    assert [step.compression for step in plan] == [EraseNoOps(), FoldBatchNorm(), QuantizeInt8()]
    reasons = {step.compression.name: step.reason for step in plan}
    assert "2 of 2 batch norms" in reasons["fold-batch-norm"]
    assert "GOP/s" in reasons["quantize-int8"]


@pytest.mark.parametrize(
    "passes",
    [
        (),
        (EraseNoOps(), FoldBatchNorm()),
        (QuantizeInt8("percentile", samples=7, keep_float=("head", "a.*")),),
    ],
)
def test_a_plan_that_was_saved_is_replayed_equal(passes: tuple[Pass, ...], tmp_path: Path) -> None:
    steps = tuple(PlannedPass(each, f"reason {index}", bool(index % 2)) for index, each in enumerate(passes))
    plan = Plan(steps, {"other": 'with "quotes" and ü'})
    assert Plan.load(plan.save(tmp_path / "plan.toml")) == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.toml"]


def test_an_edited_plan_is_what_is_replayed(tmp_path: Path) -> None:
    path = Plan((PlannedPass(QuantizeInt8(), "why"),)).save(tmp_path / "plan.toml")
    path.write_text(path.read_text().replace('"mse"', '"minmax"'))
    (step,) = Plan.load(path)
    assert step.compression == QuantizeInt8("minmax")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[pass]]\nname = 'quantise-int8'", "quantize-int8"),
        ("[[pass]]\nname = 'quantize-int8'\n[pass.options]\ncalibator = 'mse'", "calibrator"),
        ("[[pass]]\nname = 'quantize-int8'\n[pass.options]\ncalibrator = 'mes'", "did you mean 'mse'"),
        ("[[pass]]\nreason = 'no name'", "its name"),
        ("[[pass", "cannot be read"),
        ("pass = 3", "plan"),
        ("[[pass]]\nname = 'quantize-int8'\noptions = 3", "options"),
    ],
    ids=["pass", "option", "value", "nameless", "broken", "no table", "options no table"],
)
def test_a_mistake_in_a_saved_plan_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        Plan.load(tmp_path / "plan.toml")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_is_no_plan_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"plan\.toml"):
        Plan.load(path)


def test_passes_that_the_user_lists_are_requested_in_their_order() -> None:
    plan = as_plan(iter([QuantizeInt8(), EraseNoOps()]))
    assert [(step.compression, step.reason, step.requested) for step in plan] == [
        (QuantizeInt8(), REQUESTED, True),
        (EraseNoOps(), REQUESTED, True),
    ]


def test_one_pass_is_a_list_of_one() -> None:
    assert as_plan(EraseNoOps()) == as_plan([EraseNoOps()])


def test_a_plan_is_replayed_as_it_is() -> None:
    plan = Plan((PlannedPass(EraseNoOps(), "why"),))
    assert as_plan(plan) is plan


@pytest.mark.parametrize("passes", [[object()], [QuantizeInt8], ["quantize-int8"], 3, "quantize-int8"])
def test_what_is_no_pass_is_a_user_error(passes: object) -> None:
    with pytest.raises(UserError, match="passes="):
        as_plan(passes)  # type: ignore[arg-type]
