"""What all benchmarks share: a printed table, a JSON file, and where the figures were measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "onnx", "onnxruntime", "nncf", "openvino", "transformers", "olive-ai")
INT8_EXTENSIONS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")

Row = Mapping[str, Any]


def processor() -> str:
    """The processor's model name and the INT8 instructions that it has."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    extensions = [extension for extension in INT8_EXTENSIONS if extension in flags]
    return " ".join([fields.get("model name", platform.machine()), *extensions])


def machine() -> dict[str, Any]:
    return {"cpu": processor(), "cores": os.cpu_count(), "versions": installed_versions()}


def installed_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def show(title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Print rows that share their columns; floats with three digits that count."""
    console = Console(width=None if Console().is_terminal else 160)
    table = Table(title=title, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(cell(value) for value in row.values()))
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def write_json(path: Path | None, benchmark: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    if path is None:
        return
    content = {"benchmark": benchmark, "machine": machine(), "notes": list(notes), "rows": list(rows)}
    beside = path.with_suffix(path.suffix + ".part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)
