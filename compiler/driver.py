"""planish.compile: from a trained model to the artifact for a device. Read ``compile`` as the table of contents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from planish.compiler import artifact as artifacts
from planish.compiler.artifact import Artifact
from planish.compiler.contracts import Backend, Budget, FileFinding, Finding, Pass, Situation, run_checks
from planish.compiler.example_inputs import find_example_inputs
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.job import Job, Model
from planish.compiler.judge import Metric
from planish.compiler.plan import Plan, make_plan
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.progress import stages
from planish.compiler.report import Report
from planish.compiler.targets import Target, find_backend, find_profile, takes_dynamic_shapes
from planish.compiler.trace import trace_with_notes


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
    train: Iterable[Any] | None = None,
    teacher: Any = None,
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
        train: iterable of (inputs, labels) that can be read in every epoch: a DataLoader as it is. With it, passes that
            lose accuracy are followed by training, which wins it back; without it, nothing is trained.
        teacher: what training imitates, anything callable as the model is (another model, an ExportedProgram, an
            artifact), or several of them; the model before compression if left out.

    Raises:
        UserError: the model, the data, the target or an option does not fit.
        PassError, LoweringError: a pass or backend failed; the message names node and module.
        VerificationError: the artifact does not compute what the Program does. Nothing is written then.
    """
    with torch.random.fork_rng(devices=[]), stages().shown() as progress:
        torch.manual_seed(seed)
        with tempfile.TemporaryDirectory(prefix="planish-") as scratch, artifacts.new_folder(_path(output)) as folder:
            job = Job.start(
                model,
                target,
                example_inputs,
                calibration,
                metric,
                budget,
                passes,
                backend,
                seed,
                train,
                teacher,
                progress,
            )
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
    program = _traced(model, inputs, profile, chosen)
    return run_checks(program, chosen.checks(profile))


def check_file(file: Path, target: Target, backend: str | Backend | None = None) -> list[FileFinding]:
    """As ``check``, for an ONNX file, whoever made it."""
    profile = find_profile(target)
    chosen, _ = find_backend(profile, backend)
    return chosen.check_file(file, profile)


def plan(
    model: Model,
    target: Target,
    example_inputs: Any = None,
    budget: Budget | None = None,
    backend: str | Backend | None = None,
    train: Iterable[Any] | None = None,
) -> Plan:
    """The Plan that ``compile`` would follow: print it, save it, edit it, and pass it as ``passes=``."""
    profile = find_profile(target)
    chosen, _ = find_backend(profile, backend)
    inputs, _ = find_example_inputs(model, example_inputs)
    program = _traced(model, inputs, profile, chosen)
    rules = registry().coupling_rules
    situation = Situation(
        program, profile, chosen.scheme(profile), budget or Budget(), train is not None, coupling_rules=rules
    )
    return make_plan(situation, registry().passes.values())


def _traced(model: Model, inputs: Inputs, profile: HardwareProfile, backend: Backend) -> Program:
    dynamic = takes_dynamic_shapes(profile, backend)
    return trace_with_notes(model, inputs if dynamic else next(inputs.split(1)), dynamic).program


def _path(output: str | Path | None) -> Path | None:
    return None if output is None else Path(output)
