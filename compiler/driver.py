"""planish.compile: from a trained model to the artifact for a device. Read ``compile`` as the table of contents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch

from planish.compiler import artifact as artifacts
from planish.compiler.artifact import Artifact
from planish.compiler.contracts import Backend, Budget, FileFinding, Finding, Pass, Situation, run_checks
from planish.compiler.errors import UserError
from planish.compiler.fleet import Fleet, compile_fleet
from planish.compiler.job import Job
from planish.compiler.judge import Metric
from planish.compiler.once import Once, form_of
from planish.compiler.plan import Plan, make_plan
from planish.compiler.plugins import registry
from planish.compiler.progress import stages
from planish.compiler.request import Model, Request
from planish.compiler.result import Result
from planish.compiler.targets import Target, find_backend, find_profile, takes_dynamic_shapes


class Options(TypedDict, total=False):
    """What ``compile`` takes by name, for one target as for several."""

    metric: Metric | None
    budget: Budget | None
    passes: Plan | Iterable[Pass] | None
    backend: str | Backend | None
    output: str | Path | None
    seed: int
    train: Iterable[Any] | None
    teacher: Any


@overload
def compile(
    model: Model, target: Target, example_inputs: Any = None, calibration: Iterable[Any] | None = None,
    **options: Unpack[Options],
) -> Result: ...  # fmt: skip
@overload
def compile(
    model: Model, *, targets: Iterable[Target], example_inputs: Any = None, calibration: Iterable[Any] | None = None,
    **options: Unpack[Options],
) -> Fleet: ...  # fmt: skip
def compile(
    model: Model,
    target: Target | None = None,
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
    *,
    targets: Iterable[Target] | None = None,
) -> Result | Fleet:
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
        targets: several devices instead of ``target``. What is the same for them is done once: tracing, the
            calibration rows, every pass whose options and whose facts of the device are equal, training among them.
            A Fleet comes back; what fails for one target is in ``Fleet.failures``, and the others go on.

    Raises:
        UserError: the model, the data, the target or an option does not fit.
        PassError, LoweringError: a pass or backend failed; the message names node and module.
        VerificationError: the artifact does not compute what the Program does. Nothing is written then.
    """
    request = Request.of(
        model, example_inputs, calibration, metric, budget, passes, backend, seed, train, teacher
    )  # fmt: skip
    place = None if output is None else Path(output)
    if (target is None) == (targets is None):
        raise UserError("Name either target, one device, or targets, several.")
    with torch.random.fork_rng(devices=[]), stages().shown() as progress:
        if targets is not None:
            return compile_fleet(request, targets, place, progress, _finish)
        assert target is not None
        torch.manual_seed(seed)
        with artifacts.new_folder(place) as folder:
            job = Job.start(request, target, Once(request, progress))
            return _finish(job, folder, place or folder)


def _finish(job: Job, folder: Path, place: Path) -> Result:
    """What follows the start: passes, proof, files, report. ``folder`` will lie at ``place``."""
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        judge = job.judge(scratch)
        outcome = job.run(judge)
        job.check_artifact(outcome)
        manifest = job.write(outcome, folder)
        report = job.report(outcome)
        report.save(folder / "report.json")
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
    any_batch = takes_dynamic_shapes(profile, chosen)
    program = Once(Request(model, example_inputs), stages()).traced(any_batch).program
    return run_checks(form_of(any_batch)(program), chosen.checks(profile))


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
    any_batch = takes_dynamic_shapes(profile, chosen)
    program = Once(Request(model, example_inputs), stages()).traced(any_batch).program
    rules = registry().coupling_rules
    situation = Situation(
        program, profile, chosen.scheme(profile), budget or Budget(), train is not None, coupling_rules=rules
    )
    return make_plan(situation, registry().passes.values())
