"""planish.compile: from a trained model to the artifact for a device. Read ``compile`` as the table of contents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from planish.compiler import artifact as artifacts
from planish.compiler.artifact import Artifact, Manifest
from planish.compiler.calibration import Calibration, InputForm, from_data
from planish.compiler.contracts import Backend, Budget, Context, Finding, Pass, Situation, run_checks
from planish.compiler.drawn_inputs import draw_calibration
from planish.compiler.errors import UserError
from planish.compiler.example_inputs import find_example_inputs
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.judge import Judge, Metric, probes, runner_of
from planish.compiler.pipeline import Outcome, peak_memory_mb, run_plan
from planish.compiler.plan import Plan, as_plan, make_plan
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.progress import Stages, stages
from planish.compiler.report import Error, Report
from planish.compiler.rules import verify
from planish.compiler.signature import Signature
from planish.compiler.targets import Target, find_backend, find_profile
from planish.compiler.trace import trace_with_notes
from planish.compiler.verify import demand_float, demand_quantized, errors, is_quantized

Model = nn.Module | ExportedProgram | Program


@dataclass(frozen=True)
class Result:
    """What ``planish.compile`` returns."""

    artifact: Artifact
    program: Program
    """The rewritten Program, from which the artifact was lowered."""
    plan: Plan
    report: Report

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the artifact: the model's own arguments and output structure, torch tensors in and out."""
        return self.artifact.run(*args, **kwargs)


def compile(
    model: Model,
    target: Target,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    metric: Metric | None = None,
    budget: Budget | None = None,
    passes: Plan | Iterable[Pass] | None = None,
    backend: str | Backend | None = None,
    output: str | Path | None = None,
    seed: int = 0,
) -> Result:
    """Compile ``model`` for the device ``target``, keep what pays there, and prove that it still computes the same.

    Args:
        model: a trained ``nn.Module``, an ``ExportedProgram`` or a Program. It is left as it was.
        target: name of a hardware profile (``planish targets`` lists them), path of a ``.toml``, or a profile.
        example_inputs: a tensor, a tuple (positional) or a dict (keywords) of tensors. Found without you in the
            calibration data, an ExportedProgram, ``example_input_array`` (Lightning), ``dummy_inputs``
            (transformers), timm's ``pretrained_cfg`` or the first layer.
        calibration: iterable of inputs, or of (inputs, labels): a DataLoader as it is. Without it, INT8 ranges
            come from drawn inputs, and the Report says so.
        metric: gets ``run(*inputs) -> outputs``, returns a float, higher is better.
        budget: what you need; a pass that costs more than ``budget.metric_drop`` is undone.
        passes: passes or a Plan instead of the plan for the device; ``[]`` compiles without compression. Passes
            named here are kept even where they do not pay; the Report has the figures.
        backend: name of a backend instead of the profile's own.
        output: folder for the artifact; a temporary one if left out. An artifact in it is replaced at the end.
        seed: for everything that is drawn.

    Raises:
        UserError: the model, the data, the target or an option does not fit.
        PassError, LoweringError: a pass or backend failed; the message names node and module.
        VerificationError: the artifact does not compute what the Program does. Nothing is written then.
    """
    with torch.random.fork_rng(devices=[]), stages().shown() as progress:
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory(prefix="planish-") as scratch, artifacts.new_folder(_path(output)) as folder:
            job = _Job.start(model, target, example_inputs, calibration, budget, passes, backend, seed, progress)
            judge = job.judge(metric, scratch)
            outcome = job.run(judge)
            job.check_artifact(outcome)
            manifest = job.write(outcome, folder)
            report = job.report(outcome)
            report.save(folder / "report.json")
    place = _path(output) or folder
    return Result(Artifact(place, manifest, job.backend), outcome.best.program, job.plan, report)


def load(folder: str | Path) -> Artifact:
    """A saved artifact again: SHA-256 sums checked, nothing unpickled. Raises UserError naming a damaged file."""
    return artifacts.read_artifact(Path(folder), registry().find_backend)


def check(
    model: Model, target: Target, example_inputs: Any = None, backend: str | Backend | None = None
) -> list[Finding]:
    """What would fail or fall back for ``model`` on ``target``, before any work is done."""
    profile = find_profile(target)
    chosen, _ = find_backend(profile, backend)
    inputs, _ = find_example_inputs(model, example_inputs)
    program = trace_with_notes(model, inputs).program
    return run_checks(program, chosen.checks(profile))


def plan(
    model: Model,
    target: Target,
    example_inputs: Any = None,
    budget: Budget | None = None,
    backend: str | Backend | None = None,
) -> Plan:
    """The Plan that ``compile`` would follow: print it, save it, edit it, and pass it as ``passes=``."""
    profile = find_profile(target)
    chosen, _ = find_backend(profile, backend)
    inputs, _ = find_example_inputs(model, example_inputs)
    program = trace_with_notes(model, inputs).program
    situation = Situation(program, profile, chosen.scheme(profile), budget or Budget())
    return make_plan(situation, registry().passes.values())


def _path(output: str | Path | None) -> Path | None:
    return None if output is None else Path(output)


@dataclass
class _Job:
    """One compilation: what was resolved at its start, and what it says of itself."""

    name: str
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
        cls, model: Model, target: Target, example_inputs: Any, data: Iterable[Any] | None, budget: Budget | None,
        passes: Plan | Iterable[Pass] | None, backend: str | Backend | None, seed: int, progress: Stages,
    ) -> _Job:  # fmt: skip
        """Everything that can be wrong with the arguments is found here, before any work."""
        profile = find_profile(target)
        chosen, note = find_backend(profile, backend)
        notes = [note] if note else []
        given = None if passes is None else as_plan(passes)
        data = [*data] if data is not None and iter(data) is data else data  # what can be read only once is kept
        with progress.stage("trace"):
            inputs, origin = find_example_inputs(model, example_inputs, data)
            traced = trace_with_notes(model, inputs)
            program = traced.program
            verify(program, "tracing")
        notes += [f"Example inputs: {origin}", *traced.notes]
        _raise_errors(run_checks(program, chosen.checks(profile)), profile)
        scheme = chosen.scheme(profile)
        budget = budget or Budget()
        with progress.stage("plan"):
            plan = given or make_plan(Situation(program, profile, scheme, budget), registry().passes.values())
        with progress.stage("calibration data"):
            calibration = _calibration(model, data, program, plan, seed, notes)
        context = Context(profile, scheme, calibration, seed)
        name = type(model).__name__ if isinstance(model, nn.Module) else "program"
        return cls(name, profile, chosen, program, plan, calibration, context, budget, notes, progress, [])

    def judge(self, metric: Metric | None, scratch: str) -> Judge:
        fresh = probes(self.calibration, self.program.example_inputs)
        single = next(fresh[0].split(1)) if self.program.dynamic_axes else self.program.example_inputs
        return Judge(self.backend, self.profile, self.budget, metric, fresh, single, Path(scratch))

    def run(self, judge: Judge) -> Outcome:
        def say(what: str) -> None:
            self.progress.say(what)

        with self.progress.stage("passes"):
            return run_plan(self.program, self.plan, self.context, judge, say)

    def check_artifact(self, outcome: Outcome) -> None:
        """The lowered files against the Program, at several batch sizes. Raises VerificationError."""
        best, backend, profile = outcome.best, self.backend, self.profile
        why_not = backend.cannot_run(profile)
        if why_not:
            self.notes.append(f"The artifact was not run: {why_not}.")
            return
        with self.progress.stage("verify"):
            batches = self._verification_batches()
            run = runner_of(best, backend, profile)
            self.errors = errors(best.program, run, batches)
            if is_quantized(best.program):
                demand_quantized(self.errors, errors(outcome.baseline.program, best.program, batches))
            else:
                demand_float(self.errors)

    def _verification_batches(self) -> list[Inputs]:
        (fresh,) = probes(self.calibration, self.program.example_inputs)
        if not self.program.dynamic_axes:
            return [self.program.example_inputs]
        return [fresh, next(fresh.split(1))]

    def write(self, outcome: Outcome, folder: Path) -> Manifest:
        best = outcome.best
        for name in best.lowered.files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (best.folder / name).replace(target)
        manifest = Manifest(
            model=self.name,
            backend=self.backend.name,
            profile=self.profile,
            signature=Signature.of(best.program.graph).to_json(),
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


def _raise_errors(findings: list[Finding], profile: HardwareProfile) -> None:
    broken = [finding for finding in findings if finding.check.severity == "error"]
    if broken:
        raise UserError(f"{profile.title} cannot take this model: " + "; ".join(dict.fromkeys(map(str, broken))))


def _calibration(
    model: Model, data: Iterable[Any] | None, program: Program, plan: Plan, seed: int, notes: list[str]
) -> Calibration:
    if data is not None:
        form = InputForm.of_module(model) if isinstance(model, nn.Module) else InputForm.of_program(program)
        return from_data(data, form, program)
    if all(step.compression.exact for step in plan):
        return Calibration([program.example_inputs], "the example inputs")
    drawn = draw_calibration(program, seed=seed)
    notes.insert(0, f"Calibration: {drawn.origin}")
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
        ("metric_drop", budget.metric_drop, lost),
    )
    return [
        f"Budget not met: {name} is {value:.4g}, {bound:g} was asked for."
        for name, bound, value in rows
        if bound is not None and value is not None and value > bound
    ]
