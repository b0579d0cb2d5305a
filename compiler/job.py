"""One compilation, step by step: what ``compile`` calls."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from planish.compiler import artifact as artifacts
from planish.compiler.artifact import Manifest
from planish.compiler.calibration import Calibration, InputForm, from_data, readable
from planish.compiler.contracts import Backend, Budget, Context, Finding, Pass, Situation, run_checks
from planish.compiler.cost import node_costs
from planish.compiler.drawn_inputs import draw_calibration
from planish.compiler.errors import UserError
from planish.compiler.example_inputs import find_example_inputs
from planish.compiler.half_precision import in_half_precision
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.judge import Judge, Metric, probes, runner_of
from planish.compiler.memory import peak_memory_mb
from planish.compiler.pipeline import Outcome, run_plan
from planish.compiler.plan import Plan, as_plan, make_plan
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.progress import Stages
from planish.compiler.report import Error, Report
from planish.compiler.rules import verify
from planish.compiler.signature import Signature
from planish.compiler.targets import Target, find_backend, find_profile, takes_dynamic_shapes
from planish.compiler.trace import evaluated, trace_with_notes
from planish.compiler.training_data import TrainingData
from planish.compiler.verify import (
    Outputs,
    agree,
    compare,
    demand_float,
    demand_quantized,
    demand_rounded,
    errors,
    is_quantized,
    outputs_of,
)

Model = nn.Module | ExportedProgram | Program


@dataclass
class Job:
    """One compilation: what was resolved at its start, and what it says of itself."""

    model: Model
    profile: HardwareProfile
    backend: Backend
    program: Program
    plan: Plan
    calibration: Calibration
    context: Context
    budget: Budget
    notes: list[str]
    progress: Stages
    errors: list[Error]

    @classmethod
    def start(
        cls, model: Model, target: Target, example_inputs: Any, data: Iterable[Any] | None, metric: Metric | None,
        budget: Budget | None, passes: Plan | Iterable[Pass] | None, backend: str | Backend | None, seed: int,
        train: Iterable[Any] | None, teacher: Any, progress: Stages,
    ) -> Job:  # fmt: skip
        """Everything that can be wrong with the arguments is found here, before any work."""
        profile = find_profile(target)
        chosen, note = find_backend(profile, backend)
        notes = [note] if note else []
        given = None if passes is None else as_plan(passes)
        data = None if data is None else readable(data)
        training_data = None if train is None else TrainingData(train)
        if budget is not None and not isinstance(budget, Budget):
            raise UserError(f"Pass planish.Budget(…) as budget, not {budget!r}.")
        with progress.stage("trace"):
            inputs, origin = find_example_inputs(model, example_inputs, data)
            dynamic = takes_dynamic_shapes(profile, chosen)
            traced = trace_with_notes(model, inputs if dynamic else next(inputs.split(1)), dynamic)
            program = traced.program
            verify(program, "tracing")
        if not dynamic:
            owner = f"The {chosen.name} backend" if profile.support.dynamic_shapes else profile.title
            notes.append(f"{owner} takes fixed shapes only: the batch is {program.example_inputs.batch_size}.")
        notes += [origin, *traced.notes]
        findings = run_checks(program, chosen.checks(profile))
        _raise_errors(findings, profile)
        notes += _warnings(findings)
        scheme = chosen.scheme(profile)
        budget = budget or Budget()
        with progress.stage("plan"):
            rules = registry().coupling_rules
            situation = Situation(program, profile, scheme, budget, train is not None, coupling_rules=rules)
            plan = given or make_plan(situation, registry().passes.values())
        with progress.stage("calibration data"):
            calibration = _calibration(model, data, program, plan, seed, notes, progress)
        context = Context(
            profile, scheme, calibration, seed, train=training_data, teacher=teacher, metric=metric, original=program,
            progress=progress, coupling_rules=rules,
        )  # fmt: skip
        return cls(model, profile, chosen, program, plan, calibration, context, budget, notes, progress, [])

    @property
    def name(self) -> str:
        return type(self.model).__name__ if isinstance(self.model, nn.Module) else "program"

    def judge(self, metric: Metric | None, scratch: str) -> Judge:
        return Judge(self.backend, self.profile, self.budget, metric, self._fresh_batches, Path(scratch))

    def run(self, judge: Judge) -> Outcome:
        with self.progress.stage("passes"):
            return run_plan(self.program, self.plan, self.context, judge, self.progress.say)

    def check_artifact(self, outcome: Outcome) -> None:
        """The model against the Program, and the Program against the lowered files. Raises VerificationError."""
        best, backend, profile = outcome.best, self.backend, self.profile
        with self.progress.stage("verify"):
            batches = self._fresh_batches
            cleaned = outcome.baseline.outputs
            self._check_program(cleaned, batches)
            why_not = backend.cannot_run(profile) or best.lowered.cannot_run
            if why_not:
                self.notes.append(f"The artifact was not run: {why_not}.")
                return
            lowered = outputs_of(runner_of(best, backend, profile), batches)
            self.errors = compare(best.outputs, lowered)
            self._prove(outcome, lowered)

    def _prove(self, outcome: Outcome, lowered: Outputs) -> None:
        """What the files compute against the Program, as far as their precision and their weights allow."""
        best, batches = outcome.best, self._fresh_batches
        program = best.lowered.stored or best.program
        exact = best.outputs if program is best.program else outputs_of(program, batches)
        half = best.lowered.precision == "float16"
        rounded = outputs_of(in_half_precision(program), batches) if half else exact
        found = compare(exact, lowered)
        if is_quantized(best.program):
            demand_quantized(found, compare(outcome.baseline.outputs, rounded))
        elif half:
            demand_rounded(found, compare(exact, rounded))
        else:
            demand_float(found, "the float artifact")

    def _check_program(self, cleaned: Outputs, batches: list[Inputs]) -> None:
        """What tracing and the exact passes made, against the model as the user has it."""
        reference = evaluated(self.model) if isinstance(self.model, nn.Module) else self.program
        found = compare(outputs_of(reference, batches), cleaned)
        if not agree(found) and not agree(errors(reference, reference, batches)):
            self.notes.append("The model is random in evaluation: the Program was not compared with it.")
        else:
            demand_float(found, "the traced and cleaned Program")

    @cached_property
    def _fresh_batches(self) -> list[Inputs]:
        """A few rows in one batch, then one alone; only the example inputs where the batch is fixed."""
        if not self.program.dynamic_axes:
            return [self.program.example_inputs]
        (fresh,) = probes(self.calibration, self.program.example_inputs)
        return [*fresh.split(max(1, fresh.batch_size - 1))]

    def write(self, outcome: Outcome, folder: Path) -> Manifest:
        best = outcome.best
        for name in best.lowered.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(best.folder / name, target)  # the two may lie on different file systems
        tensors = [leaf for leaf in best.program.example_inputs.leaves() if isinstance(leaf, Tensor)]
        self.backend.write_build_files(folder, self.profile, tensors)
        manifest = Manifest(
            model=self.name,
            backend=self.backend.name,
            profile=self.profile,
            signature=Signature.of(best.program.graph).to_json(),
            inputs=artifacts.inputs_of(best.program),
            constants=artifacts.constant_outputs(best.program),
            runtime=best.lowered.runtime,
            plan=[{"name": kept.name, "options": kept.options()} for kept in outcome.kept],
            seed=self.context.seed,
            versions=artifacts.versions(best.lowered.versions),
            files=artifacts.sums(folder, best.lowered),
        )
        artifacts.write_manifest(folder, manifest)
        return manifest

    def report(self, outcome: Outcome) -> Report:
        return Report(
            model=self.name,
            target=self.profile.name,
            backend=self.backend.name,
            notes=[*self.notes, *outcome.best.lowered.notes, *_unmet(self.budget, outcome)],
            baseline=outcome.baseline.figures,
            result=outcome.best.figures,
            steps=outcome.steps,
            not_planned=dict(self.plan.left_out),
            runtime_decisions=[*outcome.best.lowered.decisions],
            errors=self.errors,
            seconds=self.progress.seconds,
            peak_memory_mb=peak_memory_mb(),
        )


def _warnings(findings: list[Finding]) -> list[str]:
    """A sentence for each check that warns, with how often it does and where first."""
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.check.severity == "warning":
            found.setdefault(finding.check.name, []).append(finding)
    return [f"{of[0]}" + (f" and {len(of) - 1} more." if len(of) > 1 else "") for of in found.values()]


def _raise_errors(findings: list[Finding], profile: HardwareProfile) -> None:
    broken = [finding for finding in findings if finding.check.severity == "error"]
    if broken:
        raise UserError(f"{profile.title} cannot take this model: " + "; ".join(dict.fromkeys(map(str, broken))))


def _calibration(
    model: Model, data: Iterable[Any] | None, program: Program, plan: Plan, seed: int, notes: list[str],
    progress: Stages,
) -> Calibration:  # fmt: skip
    if data is not None:
        form = InputForm.of_module(model) if isinstance(model, nn.Module) else InputForm.of_program(program)
        return from_data(data, form, program)
    if all(step.compression.exact for step in plan):
        return Calibration([program.example_inputs], "the example inputs")
    drawn = draw_calibration(program, seed=seed, progress=progress)
    notes.insert(0, f"No calibration data was given: inputs were {drawn.origin}.")
    return drawn


def _unmet(budget: Budget, outcome: Outcome) -> list[str]:
    """A sentence for each bound of the budget that the result does not keep."""
    figures = outcome.best.figures
    latency = figures.latency.median_ms if figures.latency else None
    lost = None
    if figures.metric is not None and outcome.baseline.figures.metric is not None:
        lost = outcome.baseline.figures.metric - figures.metric
    rows = (
        ("latency_ms", budget.latency_ms, latency),
        ("size_mb", budget.size_mb, figures.size_bytes / 1e6),
        ("memory_mb (estimated)", budget.memory_mb, _memory_mb(outcome.best.program)),
        ("metric_drop", budget.metric_drop, lost),
    )
    return [
        f"Budget not met: {name} is {value:.4g}, {bound:g} was asked for."
        for name, bound, value in rows
        if bound is not None and value is not None and value > bound
    ]


def _memory_mb(program: Program) -> float:
    """What a runtime needs at the least for one row: all parameters, and the operands and results of one node."""
    costs = node_costs(program)
    return (sum(cost.parameter_bytes for cost in costs) + max(cost.activation_bytes for cost in costs)) / 1e6
