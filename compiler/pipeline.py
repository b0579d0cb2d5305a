"""Runs a plan: requires -> run -> verify -> judge -> record, for each pass, from this one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from planish.compiler.contracts import Context, Pass
from planish.compiler.errors import PassError, PlanishError
from planish.compiler.judge import Candidate, Judge
from planish.compiler.memory import peak_memory_mb, return_freed_memory, reuse_freed_memory
from planish.compiler.once import Once
from planish.compiler.plan import Plan, PlannedPass
from planish.compiler.program import Program
from planish.compiler.report import Step
from planish.compiler.rules import verify


@dataclass
class Outcome:
    """What came out of a plan."""

    best: Candidate
    """The Program that is kept, with its lowered files and figures."""
    baseline: Candidate
    """The Program before any pass that had to pay."""
    steps: list[Step] = field(default_factory=list)
    kept: list[Pass] = field(default_factory=list)


def run_plan(
    program: Program, plan: Plan, context: Context, judge: Judge, once: Once, form: Callable[[Program], Program]
) -> Outcome:
    """Run every step on what the steps before it made; ``form`` is what the backend is given of a Program.

    Raises PassError naming pass, node and what ran before.
    """
    steps: list[Step] = []
    kept: list[Pass] = []
    outcome: Outcome | None = None
    reuse_freed_memory()
    for planned in _with_requirements(plan):
        once.progress.say(planned.compression.name)
        start = time.perf_counter()
        context.decisions.clear()
        context.notes.clear()
        rewritten = once.rewritten(planned.compression, program, context, partial(_run, before=[*kept]))
        if planned.compression.exact:
            if outcome is not None:
                outcome.best = judge.lowered_again(outcome.best, form(rewritten), planned.compression.name)
            program = rewritten
            kept.append(planned.compression)
            verdict = "Outputs stay the same: kept without being judged."
            steps.append(_record(planned, "exact", verdict, start, context))
            continue
        if outcome is None:
            baseline = judge.baseline(form(program))
            outcome = Outcome(baseline, baseline, steps, kept)
        judgement = judge.compare(outcome.best, form(rewritten), planned)
        step = _record(planned, judgement.outcome, judgement.verdict, start, context)
        step.before, step.after = judgement.before, judgement.after
        steps.append(step)
        if judgement.outcome != "undone":
            outcome.best = judgement.candidate
            program = rewritten
            kept.append(planned.compression)
    if outcome is None:
        baseline = judge.baseline(form(program))
        judge.time_alone(baseline)
        outcome = Outcome(baseline, baseline, steps, kept)
    return outcome


def _with_requirements(plan: Plan) -> Iterator[PlannedPass]:
    """The steps of ``plan``, each behind the passes that it requires and that did not run yet."""
    done: set[type[Pass]] = set()
    for planned in plan:
        yield from _required(planned.compression, done)
        done.add(type(planned.compression))
        yield planned


def _required(compression: Pass, done: set[type[Pass]]) -> Iterator[PlannedPass]:
    for kind in compression.requires:
        if kind not in done:
            done.add(kind)
            required = kind()
            yield from _required(required, done)
            yield PlannedPass(required, f"Required by {compression.name}.")


def _run(compression: Pass, program: Program, context: Context, before: Sequence[Pass]) -> Program:
    names = tuple(step.name for step in before)
    try:
        rewritten = compression.run(program, context)
    except PassError as failure:
        failure.component = failure.component or compression.name
        failure.passes_before = failure.passes_before or names
        raise
    except PlanishError:
        raise
    except Exception as failure:
        raise PassError(
            f"Report this to the author of {compression.name}: it failed with {type(failure).__name__}: {failure}",
            component=compression.name,
            passes_before=names,
        ) from failure
    return_freed_memory()
    verify(rewritten, compression.name)
    return rewritten


def _record(planned: PlannedPass, outcome: str, verdict: str, start: float, context: Context) -> Step:
    return Step(
        compression=planned.compression.name,
        options=planned.compression.options(),
        reason=planned.reason,
        outcome=outcome,  # type: ignore[arg-type]
        verdict=verdict,
        seconds=time.perf_counter() - start,
        peak_memory_mb=peak_memory_mb(),
        decisions=[*context.decisions],
        notes=[*context.notes],
    )
