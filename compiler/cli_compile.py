"""The commands that take a model: compile, plan, check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Group
from rich.text import Text
from typer import Argument, Option

from planish.compiler.cli_command import FINDINGS, Answer, code_of

if TYPE_CHECKING:
    from planish.compiler.contracts import FileFinding, Finding
    from planish.compiler.fleet import Fleet
    from planish.compiler.result import Result

Model = Annotated[
    str,
    Argument(
        metavar="MODEL",
        help="FILE.py:NAME or MODULE:NAME of a model, or of a callable that returns one (importing it runs that code); "
        "or a saved Program, FILE.planish.",
        show_default=False,
    ),
]
Target = Annotated[
    str, Option("--target", "-t", help="Name of a target (planish targets), or path of a .toml.", show_default=False)
]
Targets = Annotated[
    list[str],
    Option(
        "--target", "-t", help="Name of a target (planish targets), or path of a .toml; repeat for several.",
        show_default=False,
    ),
]  # fmt: skip
Inputs = Annotated[
    str | None,
    Option("--inputs", metavar="SOURCE", help="Example inputs: FILE.py:NAME, MODULE:NAME, a .npy or a .npz file."),
]
CalibrationData = Annotated[
    str | None,
    Option(
        metavar="SOURCE", help="Batches, as DataLoaders yield them: FILE.py:NAME, MODULE:NAME, a .npy or a .npz file."
    ),
]
MetricName = Annotated[
    str | None,
    Option(
        metavar="SOURCE",
        help="FILE.py:NAME or MODULE:NAME; gets run(*inputs) -> outputs, returns a float, higher is better.",
    ),
]
BackendName = Annotated[str | None, Option(help="Name of a backend instead of the target's own.")]
LatencyBound = Annotated[float | None, Option("--budget-latency-ms", help="Latency that you need.")]
SizeBound = Annotated[float | None, Option("--budget-size-mb", help="Size of the files that you need.")]
MemoryBound = Annotated[float | None, Option("--budget-memory-mb", help="Memory that you need.")]
DropBound = Annotated[float | None, Option("--metric-drop", help="How much of the metric each pass may cost.")]


def compile(
    model: Model,
    target: Targets,
    output: Annotated[
        Path,
        Option("--output", "-o", help="Folder for the artifact; one that is there is replaced.", show_default=False),
    ],
    calibration: CalibrationData = None,
    metric: MetricName = None,
    inputs: Inputs = None,
    budget_latency_ms: LatencyBound = None,
    budget_size_mb: SizeBound = None,
    budget_memory_mb: MemoryBound = None,
    metric_drop: DropBound = None,
    plan: Annotated[Path | None, Option(help="Replay a plan that planish plan --output wrote.")] = None,
    passes: Annotated[
        list[str] | None,
        Option(
            "--pass", metavar="NAME[:KEY=VALUE,…]", help="A pass instead of the plan for the target; repeat for more."
        ),
    ] = None,
    no_compression: Annotated[bool, Option("--no-compression", help="Lower the model as it is.")] = False,
    backend: BackendName = None,
    seed: Annotated[int, Option(help="For everything that is drawn.")] = 0,
) -> Answer:
    """Compile MODEL for a target: the artifact and its report, in one folder; a folder for each of several targets."""
    from planish.compiler import cli_models, driver
    from planish.compiler.contracts import Budget
    from planish.compiler.report_table import as_renderable
    from planish.compiler.targets import find_profile

    profiles = [find_profile(name) for name in target]  # a wrong name is told before the model is loaded
    options: driver.Options = {
        "metric": cli_models.load_metric(metric) if metric else None,
        "budget": Budget(budget_latency_ms, budget_size_mb, budget_memory_mb, metric_drop),
        "passes": cli_models.load_passes(plan, passes or [], no_compression),
        "backend": backend,
        "output": output,
        "seed": seed,
    }
    data = cli_models.load_calibration(calibration) if calibration else None
    loaded, example = cli_models.load_model(model), cli_models.load_inputs(inputs) if inputs else None
    if len(profiles) > 1:
        fleet = driver.compile(loaded, targets=profiles, example_inputs=example, calibration=data, **options)
        return _fleet(fleet, output)
    result = driver.compile(loaded, profiles[0], example, data, **options)
    told = Text(f"\nThe artifact, its manifest.json and its report.json are in {output}.")
    return Answer(_document(result), Group(as_renderable(result.report), told))


def _fleet(fleet: Fleet, output: Path) -> Answer:
    from planish.compiler import fleet_table

    document = {
        "targets": {name: _document(result) for name, result in fleet.items()},
        "failures": {name: str(failure) for name, failure in fleet.failures.items()},
        "reused": fleet.reused,
    }
    told = Text(f"\nThe artifacts, each with its manifest.json and report.json, are in {output}/TARGET.")
    code = next((code_of(failure) for failure in fleet.failures.values()), 0)
    return Answer(document, Group(fleet_table.as_renderable(fleet), told), code)


def _document(result: Result) -> dict[str, Any]:
    return {"artifact": str(result.artifact.folder), "report": result.report.model_dump(mode="json")}


def plan(
    model: Model,
    target: Target,
    inputs: Inputs = None,
    budget_latency_ms: LatencyBound = None,
    budget_size_mb: SizeBound = None,
    budget_memory_mb: MemoryBound = None,
    metric_drop: DropBound = None,
    backend: BackendName = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Write the plan as TOML, to edit and to replay.")
    ] = None,
) -> Answer:
    """Print the plan that compile would follow, with a reason for each pass."""
    from planish.compiler import cli_models, cli_tables, driver
    from planish.compiler.contracts import Budget
    from planish.compiler.targets import find_profile

    profile = find_profile(target)
    example = cli_models.load_inputs(inputs) if inputs else None
    budget = Budget(budget_latency_ms, budget_size_mb, budget_memory_mb, metric_drop)
    made = driver.plan(cli_models.load_model(model), profile, example, budget, backend)
    if output is not None:
        made.save(output)
    steps = [
        {"name": step.compression.name, "options": step.compression.options(), "reason": step.reason} for step in made
    ]
    return Answer({"passes": steps, "left_out": dict(made.left_out)}, cli_tables.plan_table(made))


def check(model: Model, target: Target, inputs: Inputs = None, backend: BackendName = None) -> Answer:
    """Tell what would fail or fall back on a target, before any work. Exit code 1 if it would fail."""
    from planish.compiler import cli_models, cli_tables, driver
    from planish.compiler.targets import find_profile

    profile = find_profile(target)
    findings: Sequence[Finding | FileFinding]
    if Path(model).suffix == ".onnx":
        findings = driver.check_file(Path(model), profile, backend)
    else:
        example = cli_models.load_inputs(inputs) if inputs else None
        findings = driver.check(cli_models.load_model(model), profile, example, backend)
    failed = any(finding.check.severity == "error" for finding in findings)
    document = {"target": profile.name, "findings": [*_told(findings)]}
    return Answer(document, cli_tables.findings_table(findings, profile), FINDINGS if failed else 0)


def _told(findings: Iterable[Finding | FileFinding]) -> Iterable[dict[str, str]]:
    for finding in findings:
        yield {
            "check": finding.check.name,
            "severity": finding.check.severity,
            "sentence": finding.check.sentence,
            "op": finding.op,
            "module": finding.module,
            "source": finding.check.source,
        }
