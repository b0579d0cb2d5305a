"""Wall time and peak memory of compiling to INT8, by planish and other tools, each in its own process."""

from __future__ import annotations

import json as json_format
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.tables import machine, show, write_json

MODELS = ("resnet50", "bert-base")
# What each task starts from; the module's ways include the export to float ONNX that the file's ways need.
TASKS = {
    "planish": "nn.Module",
    "export": "nn.Module",
    "ort-minmax": "float .onnx",
    "nncf-onnx": "float .onnx",
    "export + ort-minmax": "nn.Module",
    "export + nncf-onnx": "nn.Module",
}


def in_a_process(*arguments: object) -> Any:
    """What compile_cost_worker prints as its last line."""
    command = [sys.executable, "-m", "benchmarks.compile_cost_worker", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json_format.loads(done.stdout.splitlines()[-1])


def table_rows(name: str, tasks: list[str], images: int, repeats: int) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        in_a_process("prepare", name, images, folder)
        costs: dict[str, list[dict[str, float]]] = {task: [] for task in tasks}
        for _ in range(repeats):
            for task in tasks:
                costs[task].append(in_a_process(task, name, images, folder))
    rows: list[dict[str, Any]] = []
    for task in tasks:
        fastest = min(costs[task], key=lambda cost: cost["seconds"])
        rows.append(
            {
                "model": name,
                "tool": task,
                "starts from": TASKS[task],
                "s": fastest["seconds"],
                "slowest s": max(cost["seconds"] for cost in costs[task]),
                "peak MiB": fastest["peak_mib"],
                "MiB after imports": fastest["imported_mib"],
                "MiB above imports": fastest["peak_mib"] - fastest["imported_mib"],
            }
        )
    for row in rows if "ort-minmax" in tasks else []:
        reference = rows[tasks.index("ort-minmax")]
        row["x ort-minmax, s"] = row["s"] / reference["s"]
        row["x ort-minmax, MiB"] = row["peak MiB"] / reference["peak MiB"]
    return rows


def main(
    models: Annotated[list[str] | None, typer.Option(help="Names; all if left out.")] = None,
    images: Annotated[int, typer.Option(help="Calibration inputs, a multiple of 8.")] = 128,
    repeats: Annotated[int, typer.Option(help="Runs of each task, in turn; the fastest counts.")] = 2,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
    without_planish: Annotated[bool, typer.Option("--without-planish", help="Only the peers.")] = False,
) -> None:
    unknown = set(models or ()) - set(MODELS)
    if unknown:
        raise typer.BadParameter(f"unknown models {sorted(unknown)}; there are {list(MODELS)}")
    tasks = [task for task in TASKS if task != "planish" or not without_planish]
    notes = [
        f"{machine()['cpu']}, {os.cpu_count()} cores, every tool with its default threads; {images} inputs.",
        f"Fastest of {repeats} runs, imports and the loading of model and inputs excluded from the seconds.",
        "Peak MiB is the high-water mark of resident memory while compiling, with everything in the process.",
    ]
    rows: list[dict[str, Any]] = []
    for name in models or MODELS:
        found = table_rows(name, tasks, images, repeats)
        show(f"{name}: cost of compiling", found)
        rows += found
        write_json(json, "compile_cost", rows, notes)
    for note in notes:
        print(note)


if __name__ == "__main__":
    typer.run(main)
