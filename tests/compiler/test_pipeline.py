from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from planish.compiler.contracts import Budget, Context, Pass, Stage
from planish.compiler.errors import PassError, UserError, VerificationError
from planish.compiler.inputs import Inputs
from planish.compiler.once import Once, form_of
from planish.compiler.pipeline import Outcome, run_plan
from planish.compiler.plan import Plan, PlannedPass
from planish.compiler.program import Program
from planish.compiler.progress import stages
from planish.compiler.request import Request
from planish.compiler.trace import trace
from tests.compiler.fakes import FakeBackend, Keep, Scale, context_of, judge_of, scaled


@pytest.fixture(scope="module")
def program() -> Program:
    return trace(nn.Linear(4, 3), Inputs((torch.randn(2, 4),)))


@dataclass(frozen=True)
class Clean(Pass):
    name: ClassVar[str] = "clean"
    stage: ClassVar[Stage] = Stage.CLEAN
    exact: ClassVar[bool] = True

    def run(self, program: Program, context: Context) -> Program:
        context.decide(next(program.calls()), "looked at", "for the report")
        return program.fork()


@dataclass(frozen=True)
class Needs(Scale):
    name: ClassVar[str] = "needs"
    requires: ClassVar[tuple[type[Pass], ...]] = (Clean,)


@dataclass(frozen=True)
class NeedsMore(Scale):
    name: ClassVar[str] = "needs-more"
    requires: ClassVar[tuple[type[Pass], ...]] = (Needs,)


@dataclass(frozen=True)
class Fails(Pass):
    name: ClassVar[str] = "fails"
    stage: ClassVar[Stage] = Stage.STRUCTURE

    def run(self, program: Program, context: Context) -> Program:
        raise ZeroDivisionError("a bug")


@dataclass(frozen=True)
class Refuses(Fails):
    name: ClassVar[str] = "refuses"

    def run(self, program: Program, context: Context) -> Program:
        raise UserError("Give me more.")


@dataclass(frozen=True)
class Breaks(Fails):
    name: ClassVar[str] = "breaks"

    def run(self, program: Program, context: Context) -> Program:
        program = program.fork()
        next(program.calls()).target = len
        return program


@dataclass(frozen=True)
class Exact(Scale):
    name: ClassVar[str] = "exact"
    exact: ClassVar[bool] = True
    factor: float = 1.0


def run(program: Program, tmp_path: Path, *passes: Pass, requested: bool = False, **options: object) -> Outcome:
    backend = FakeBackend(latency_of=options.pop("latency_of", lambda program: 1.0 / (1 + scaled(program))))  # type: ignore[arg-type]
    plan = Plan(tuple(PlannedPass(each, "why", requested) for each in passes))
    once = Once(Request(program), stages())
    judge = judge_of(backend, program, tmp_path, **options)
    return run_plan(program, plan, context_of(program), judge, once, form_of(any_batch=True))


def names(outcome: Outcome) -> list[tuple[str, str]]:
    return [(step.compression, step.outcome) for step in outcome.steps]


def test_passes_that_pay_are_kept_one_on_top_of_the_other(program: Program, tmp_path: Path) -> None:
    outcome = run(program, tmp_path, Clean(), Scale(), Keep())
    assert names(outcome) == [("clean", "exact"), ("scale", "kept"), ("keep", "kept")]
    assert scaled(outcome.best.program) > scaled(outcome.baseline.program) == 0
    assert outcome.kept == [Clean(), Scale(), Keep()]
    assert outcome.steps[2].before == outcome.steps[1].after


def test_what_does_not_pay_leaves_no_trace_in_what_comes_after(program: Program, tmp_path: Path) -> None:
    outcome = run(program, tmp_path, Scale(factor=0.5), latency_of=lambda program: 1.0)
    assert names(outcome) == [("scale", "undone")]
    assert outcome.best is outcome.baseline and outcome.kept == []
    (x,) = program.example_inputs.leaves()
    assert torch.equal(outcome.best.program(x), program(x))


def test_a_later_pass_runs_on_what_was_kept_only(program: Program, tmp_path: Path) -> None:
    latencies = iter([1.0, 2.0, 1.0, 0.5])
    outcome = run(program, tmp_path, Scale(factor=0.5), Keep(factor=0.25), latency_of=lambda _: next(latencies))
    assert names(outcome) == [("scale", "undone"), ("keep", "kept")]
    assert scaled(outcome.best.program) == 1
    (x,) = program.example_inputs.leaves()
    weight, bias = program.state_dict()["weight"], program.state_dict()["bias"]
    with torch.no_grad():
        first, second = x @ (weight * 0.25).T + bias, x @ weight.T + bias * 0.25  # whichever comes first in the graph
        got = outcome.best.program(x)
    assert torch.allclose(got, first) or torch.allclose(got, second)


def test_required_passes_run_before_once(program: Program, tmp_path: Path) -> None:
    outcome = run(program, tmp_path, Needs(), Needs(factor=0.9))
    assert [name for name, _ in names(outcome)] == ["clean", "needs", "needs"]
    assert outcome.steps[0].reason == "Required by needs."


def test_what_a_required_pass_requires_runs_as_well(program: Program, tmp_path: Path) -> None:
    outcome = run(program, tmp_path, NeedsMore())
    assert [name for name, _ in names(outcome)] == ["clean", "needs", "needs-more"]


def test_decisions_belong_to_the_step_that_made_them(program: Program, tmp_path: Path) -> None:
    outcome = run(program, tmp_path, Clean(), Scale())
    assert [len(step.decisions) for step in outcome.steps] == [1, 0]
    assert outcome.steps[0].decisions[0].outcome == "looked at"


def test_without_a_pass_the_program_is_lowered_all_the_same(program: Program, tmp_path: Path) -> None:
    outcome = run(program, tmp_path)
    assert outcome.best is outcome.baseline and outcome.steps == []
    assert (outcome.best.folder / "model.bin").exists()


def test_a_pass_that_fails_is_named_with_what_ran_before(program: Program, tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"author of fails.*ZeroDivisionError: a bug.*in fails, after clean, scale"):
        run(program, tmp_path, Clean(), Scale(), Fails())


def test_a_user_error_of_a_pass_stays_one(program: Program, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Give me more"):
        run(program, tmp_path, Refuses())


def test_a_pass_that_breaks_the_program_is_named(program: Program, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="after breaks"):
        run(program, tmp_path, Breaks())


def test_an_exact_pass_after_a_judged_one_is_in_the_artifact(program: Program, tmp_path: Path) -> None:
    outcome = run(program, tmp_path, Scale(), Exact())
    assert names(outcome) == [("scale", "kept"), ("exact", "exact")]
    assert scaled(outcome.best.program) > 1, "what was kept was not lowered"


def test_all_passes_together_lose_no_more_of_the_metric_than_the_budget_allows(
    program: Program, tmp_path: Path
) -> None:
    scores = iter([0.90, 0.89, 0.88])
    outcome = run(program, tmp_path, Scale(), Keep(), budget=Budget(metric_drop=0.015), metric=lambda run: next(scores))
    assert names(outcome) == [("scale", "kept"), ("keep", "undone")]


def test_every_step_has_its_time_memory_options_and_reason(program: Program, tmp_path: Path) -> None:
    outcome = run(program, tmp_path, Scale(factor=0.9))
    (step,) = outcome.steps
    assert step.seconds > 0 and step.peak_memory_mb > 50
    assert (step.options, step.reason) == ({"factor": 0.9}, "why")
