"""The commands that take an artifact: run, bench, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from planish.compiler.cli_command import Answer

if TYPE_CHECKING:
    from planish.compiler.artifact import Artifact
    from planish.compiler.report import Latency

Folder = Annotated[Path, Argument(metavar="ARTIFACT", help="Folder that planish compile wrote.", show_default=False)]
Inputs = Annotated[
    str | None,
    Option("--inputs", metavar="SOURCE", help="FILE.py:NAME, MODULE:NAME, a .npy or a .npz file; drawn if left out."),
]


def run(
    artifact: Folder,
    inputs: Inputs = None,
    output: Annotated[Path | None, Option("--output", "-o", help="Write the outputs, as .npz.")] = None,
) -> Answer:
    """Run an artifact on inputs; print the shape and the range of each output."""
    from planish.compiler import cli_tables, driver

    loaded = driver.load(artifact)
    args, kwargs = _call(loaded, inputs)
    outputs = cli_tables.named_outputs(loaded(*args, **kwargs))
    if output is not None:
        _save(outputs, output)
    rows = [cli_tables.summary(name, value) for name, value in outputs.items()]
    return Answer({"outputs": rows}, cli_tables.outputs_table(rows))


def _save(outputs: dict[str, Any], path: Path) -> None:
    """Write beside, then rename."""
    import numpy as np
    from torch import Tensor

    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            arrays = {name: value.numpy(force=True) for name, value in outputs.items() if isinstance(value, Tensor)}
            np.savez(file, **arrays)  # type: ignore[arg-type] # its second parameter is another
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def bench(
    artifact: Folder,
    inputs: Inputs = None,
    against: Annotated[
        Path | None, Option(metavar="ARTIFACT", help="Time this artifact too, in turns with the first.")
    ] = None,
    threads: Annotated[int, Option(min=1, help="Threads of the runtime.")] = 1,
) -> Answer:
    """Time an artifact, each call on the whole of the inputs; --against another one in the same run."""
    from planish.compiler import cli_tables, driver

    loaded = [driver.load(folder) for folder in (artifact, against) if folder is not None]
    latencies = _times(loaded, inputs, threads)
    rows = [
        {"artifact": str(each.folder), "size_bytes": each.size_bytes, "latency": latency.model_dump(mode="json")}
        for each, latency in zip(loaded, latencies, strict=True)
    ]
    return Answer({"artifacts": rows}, cli_tables.times_table(loaded, latencies))


def _call(artifact: Artifact, source: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of one call: those the user names, or drawn ones of one row."""
    from planish.compiler import cli_models
    from planish.compiler.artifact import drawn_inputs
    from planish.compiler.inputs import Inputs, check_tensors
    from planish.compiler.signature import Signature

    if source is not None:
        given = check_tensors(Inputs.of(cli_models.load_inputs(source)), "--inputs")
        return given.args, given.kwargs
    signature = Signature.from_json(artifact.manifest.signature)
    return signature.arguments(drawn_inputs(artifact.manifest))


def _times(loaded: list[Artifact], source: str | None, threads: int) -> list[Latency]:
    """Of all artifacts, in one run. Raises UserError where that would say nothing about their device."""
    from planish.compiler.errors import UserError
    from planish.compiler.signature import Signature

    first = loaded[0]
    if len({each.backend.name for each in loaded}) > 1:
        raise UserError("Bench artifacts of one backend: those of two cannot be timed in turns.")
    for each in loaded:
        why_not = each.backend.cannot_time(each.manifest.profile)
        if why_not is not None:
            raise UserError(f"Time {each.folder} on the device: {why_not}.")
    leaves = Signature.from_json(first.manifest.signature).flatten(*_call(first, source))
    return first.backend.time([each.folder for each in loaded], first.manifest.profile, leaves, threads)


def report(artifact: Folder) -> Answer:
    """Print the report that lies in an artifact."""
    import pydantic

    from planish.compiler.errors import UserError
    from planish.compiler.report import Report
    from planish.compiler.report_table import as_renderable

    path = artifact / "report.json"
    if not path.is_file():
        raise UserError(f"Name the folder of an artifact: {artifact} holds no report.json.")
    try:
        loaded = Report.load(path)
    except (pydantic.ValidationError, UnicodeDecodeError) as failure:
        raise UserError(f"Compile again: {path} is damaged ({str(failure).splitlines()[0]}).") from failure
    return Answer(loaded.model_dump(mode="json"), as_renderable(loaded))
