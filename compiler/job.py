"""One compilation for one target, step by step: what ``compile`` calls."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from planish.compiler import artifact as artifacts
from planish.compiler.artifact import Manifest
from planish.compiler.calibration import GIVEN
from planish.compiler.contracts import Backend, Budget, Context, Finding, Situation, run_checks
from planish.compiler.cost import node_costs
from planish.compiler.errors import UserError
from planish.compiler.fixed_shapes import row_by_row
from planish.compiler.half_precision import in_half_precision
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.judge import Judge, Metric, probes, runner_of
from planish.compiler.memory import peak_memory_mb
from planish.compiler.once import Once, form_of
from planish.compiler.pipeline import Outcome, run_plan
from planish.compiler.plan import Plan, make_plan
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.report import Error, Report
from planish.compiler.request import Request
from planish.compiler.signature import Signature
from planish.compiler.targets import Target, find_backend, find_profile, takes_dynamic_shapes
from planish.compiler.trace import evaluated
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


@dataclass
class Job:
    """One compilation: what was resolved at its start, and what it says of itself."""

    request: Request
    once: Once
    profile: HardwareProfile
    backend: Backend
    program: Program
    """What the passes work on."""
    form: Callable[[Program], Program]
    """What the backend is given of a Program."""
    plan: Plan
    context: Context
    notes: list[str]
    errors: list[Error]

    @classmethod
    def start(cls, request: Request, target: Target, once: Once) -> Job:
        """Everything that can be wrong with the target is found here, before any work."""
        profile = find_profile(target)
        backend, note = find_backend(profile, request.backend)
        any_batch = takes_dynamic_shapes(profile, backend)
        traced = once.traced(any_batch)
        program, form = traced.program, form_of(any_batch)
        with once.progress.stage("trace"):
            lowered = form(program)
        notes = [note] if note else []
        if not any_batch:
            owner = f"The {backend.name} backend" if profile.support.dynamic_shapes else profile.title
            notes.append(f"{owner} takes fixed shapes only: the batch is {lowered.example_inputs.batch_size}.")
        notes += [once.inputs[1], *traced.notes]
        findings = run_checks(lowered, backend.checks(profile))
        _raise_errors(findings, profile)
        notes += _warnings(findings)
        scheme, rules = backend.scheme(profile), registry().coupling_rules
        with once.progress.stage("plan"):
            situation = Situation(
                program, profile, scheme, request.budget, request.train is not None, coupling_rules=rules
            )
            plan = request.plan or make_plan(situation, registry().passes.values())
        calibration = once.calibration(program, draws=not all(step.compression.exact for step in plan))
        if calibration.origin not in (GIVEN, "the example inputs"):
            notes.insert(0, f"No calibration data was given: inputs were {calibration.origin}.")
        context = Context(
            profile, scheme, calibration, request.seed, train=request.train, teacher=request.teacher,
            metric=request.metric, original=program, progress=once.progress, coupling_rules=rules,
        )  # fmt: skip
        return cls(request, once, profile, backend, program, form, plan, context, notes, [])

    def judge(self, scratch: str) -> Judge:
        score = self.request.metric
        if score is not None and self.program.dynamic_axes and not self.form(self.program).dynamic_axes:
            score = _of_rows(score)
        return Judge(self.backend, self.profile, self.request.budget, score, self._fresh_batches, Path(scratch))

    def run(self, judge: Judge) -> Outcome:
        with self.once.progress.stage("passes"):
            return run_plan(self.program, self.plan, self.context, judge, self.once, self.form)

    def check_artifact(self, outcome: Outcome) -> None:
        """The model against the Program, and the Program against the lowered files. Raises VerificationError."""
        best, backend, profile = outcome.best, self.backend, self.profile
        with self.once.progress.stage("verify"):
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
        reference = evaluated(self.request.model) if isinstance(self.request.model, nn.Module) else self.program
        found = compare(outputs_of(reference, batches), cleaned)
        if not agree(found) and not agree(errors(reference, reference, batches)):
            self.notes.append("The model is random in evaluation: the Program was not compared with it.")
        else:
            demand_float(found, "the traced and cleaned Program")

    @cached_property
    def _fresh_batches(self) -> list[Inputs]:
        """A few rows in one batch, then one alone; only the example inputs where the batch is fixed."""
        lowered = self.form(self.program)
        if not lowered.dynamic_axes:
            return [lowered.example_inputs]
        (fresh,) = probes(self.context.calibration, self.program.example_inputs)
        return [*fresh.split(max(1, fresh.batch_size - 1))]

    def write(self, outcome: Outcome, folder: Path) -> Manifest:
        best = outcome.best
        for name in best.lowered.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(best.folder / name, target)  # the two may lie on different file systems
        tensors = [leaf for leaf in best.program.example_inputs.leaves() if isinstance(leaf, Tensor)]
        if self.backend.cannot_time(self.profile) is not None:  # this machine is no such device
            self.backend.write_build_files(folder, self.profile, tensors)
        manifest = Manifest(
            model=self.request.name,
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
            model=self.request.name,
            target=self.profile.name,
            backend=self.backend.name,
            notes=[*self.notes, *outcome.best.lowered.notes, *_unmet(self.request.budget, outcome)],
            baseline=outcome.baseline.figures,
            result=outcome.best.figures,
            steps=outcome.steps,
            not_planned=dict(self.plan.left_out),
            runtime_decisions=[*outcome.best.lowered.decisions],
            errors=self.errors,
            on_device=[*outcome.best.lowered.on_device],
            seconds=self.once.progress.seconds,
            peak_memory_mb=peak_memory_mb(),
        )


def _of_rows(metric: Metric) -> Metric:
    """``metric`` for files that take one row: it may call them with as many as it likes."""
    return lambda run: metric(row_by_row(run))


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
