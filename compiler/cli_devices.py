"""The commands about devices that are elsewhere: build-scripts, import-report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from planish.compiler.cli_command import Answer


def build_scripts(
    target: Annotated[str, Argument(help="Name of a target, or a .toml file.", show_default=False)],
    model: Annotated[
        Path, Option(metavar="MODEL", help="An ONNX file, or the folder of an artifact.", show_default=False)
    ],
    output: Annotated[Path, Option("--output", "-o", metavar="FOLDER", help="A new folder.", show_default=False)],
    backend: Annotated[str | None, Option(help="Another backend than the target's own.")] = None,
) -> Answer:
    """Write the scripts that build a model on a device, check its outputs and measure it there."""
    from rich.text import Text

    from planish.compiler import on_device

    names = on_device.build_scripts(model, target, output, backend)
    told = f"Copy {output} to the device; its README.md says what to run there."
    return Answer({"folder": str(output), "files": [*names]}, Text(told))


def import_report(
    artifact: Annotated[Path, Argument(help="Folder that planish compile wrote.", show_default=False)],
    file: Annotated[Path, Argument(metavar="DEVICE_REPORT.json", help="What the script wrote on the device.")],
) -> Answer:
    """Put what was measured on the device into the report of an artifact."""
    from rich.text import Text

    from planish.compiler import on_device

    found = on_device.import_report(artifact, file)
    return Answer(found.model_dump(mode="json"), Text(str(found)))
