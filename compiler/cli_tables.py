"""What the commands show, as tables and as the documents of --json."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils import _pytree as pytree

from planish.compiler.artifact import Artifact
from planish.compiler.contracts import Backend, FileFinding, Finding, Pass
from planish.compiler.hardware import Figure, HardwareProfile, figures, peak_gops
from planish.compiler.options import plain
from planish.compiler.plan import Plan
from planish.compiler.plugins import Registry
from planish.compiler.report import Latency
from planish.compiler.targets import find_backend

ESTIMATE = "~"
"""Stands before every figure that is an estimate."""


def new_table(*headers: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False, pad_edge=False, header_style="dim")
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    return table


# ---------------------------------------------------------------------- targets


def target_document(profile: HardwareProfile) -> dict[str, Any]:
    return {**profile.model_dump(mode="json"), "cannot_be_timed_here": cannot_time(profile)}


def cannot_time(profile: HardwareProfile) -> str | None:
    """Why times taken here are not the target's; None if they are."""
    backend, _ = find_backend(profile, None)
    return backend.cannot_time(profile)


def targets_table(profiles: Iterable[HardwareProfile]) -> RenderableType:
    numbers = ("INT8\nTOP/s", "FP16\nTOP/s", "memory")
    table = new_table("target", "device", "backend", *numbers, "timed\nhere", right=numbers)
    for profile in profiles:
        name = Text(profile.name) + Text("".join(f"\n{alias}" for alias in profile.aliases), style="dim")
        rates = [_figure(peak_gops(profile, dtype), 1e-3) for dtype in ("int8", "fp16")]
        here = "" if cannot_time(profile) else "yes"
        table.add_row(name, profile.title, profile.backend, *rates, _memory(profile), here)
    told = f"{ESTIMATE} is an estimate; planish targets NAME shows the sources. The target local is this machine."
    return Group(table, Text(f"\n{told}", style="dim"))


def _memory(profile: HardwareProfile) -> str:
    size = profile.memory.size_mb
    return f"{_figure(size, 1 / 1024)} GB" if size.value >= 1024 else f"{_figure(size, 1)} MB"


def _figure(figure: Figure | None, factor: float) -> str:
    if figure is None:
        return ""
    return f"{ESTIMATE if figure.estimated else ''}{_digits(figure.value * factor)}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def target_sheet(profile: HardwareProfile) -> RenderableType:
    """One target: what it supports, and every figure with its source."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    for name, told in _facts(profile):
        facts.add_row(Text(name, style="dim"), Text(told or "none"))
    sheet = new_table("figure", "value", "source", right=("value",))
    for where, figure in figures(profile):
        estimated = Text("estimated", style="yellow")
        source = estimated if figure.estimated else Text("measured" if figure.measured else str(figure.source))
        sheet.add_row(Text(_place(profile, where)), f"{figure.value:,g}", source)
    sources = Table.grid(padding=(0, 2, 0, 0))
    for key, url in profile.sources.items():
        sources.add_row(Text(key, style="dim"), Text(url, overflow="fold"))
    title = Text.assemble((profile.title, "bold"), f"  {profile.name}")
    return Group(title, Text(), facts, Text(), sheet, Text(), sources)


def _place(profile: HardwareProfile, where: tuple[str | int, ...]) -> str:
    """``("units", 0, "peak_gops", "int8")`` -> ``Ampere GPU: peak_gops int8``."""
    if where[0] == "units":
        return f"{profile.units[int(where[1])].name}: {' '.join(map(str, where[2:]))}"
    return " ".join(map(str, where))


def _facts(profile: HardwareProfile) -> Iterable[tuple[str, str]]:
    support, scheme = profile.support, profile.quantization
    yield "aliases", ", ".join(profile.aliases)
    yield "vendor", profile.vendor
    yield "backend", profile.backend
    yield "dtypes", ", ".join(support.dtypes)
    yield "weight only", ", ".join(support.weight_only)
    yield "sparsity", ", ".join(support.sparsity)
    yield "dynamic shapes", "yes" if support.dynamic_shapes else "no"
    if scheme is not None:
        symmetry = "symmetric" if scheme.activation_symmetric else "asymmetric"
        yield "INT8 activations", f"{scheme.activation_dtype}, {symmetry}"
        yield "INT8 weights", f"{scheme.weight_dtype} of {scheme.weight_bits} bits, per {scheme.weight_granularity}"
        yield "INT8 limits", " ".join(scheme.notes)
    yield "notes", " ".join(profile.notes)
    yield "timed here", cannot_time(profile) or "yes"


# ---------------------------------------------------------------------- passes and backends


def pass_document(kind: type[Pass], owner: str) -> dict[str, Any]:
    lines = (inspect.getdoc(kind) or "").strip().splitlines()
    return {
        "name": kind.name,
        "stage": kind.stage.name.lower(),
        "exact": kind.exact,
        "options": {option.name: _default(option) for option in dataclasses.fields(kind)},  # type: ignore[arg-type]
        "summary": lines[0] if lines else "",
        "plugin": owner,
    }


def _default(option: dataclasses.Field[Any]) -> Any:
    if option.default_factory is not dataclasses.MISSING:
        value = option.default_factory()
    else:
        value = None if option.default is dataclasses.MISSING else option.default
    return plain(value)


def passes_table(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    table = new_table("pass", "stage", "options", "what it does")
    for row in rows:
        options = "\n".join(f"{name} = {_shown(value)}" for name, value in row["options"].items())
        table.add_row(row["name"], row["stage"], Text(options), Text(row["summary"]))
    return table


def _shown(value: Any) -> str:
    """What holds options of its own is shown by its kind."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value.get("kind", value)) if isinstance(value, dict) else str(value)


def backend_document(backend: Backend, known: Registry) -> dict[str, Any]:
    """Asked for the targets that name the backend; for all, where none does."""
    own = [profile for profile in known.profiles.values() if profile.backend == backend.name] or [
        *known.profiles.values()
    ]
    obstacles = {profile.name: backend.cannot_run(profile) for profile in own}
    runs = not obstacles or None in obstacles.values()
    return {
        "name": backend.name,
        "plugin": known.owners["backend"][backend.name],
        "cannot_be_run_here": None if runs else next(iter(obstacles.values())),
        "times_here": [profile.name for profile in own if backend.cannot_time(profile) is None],
    }


def backends_table(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    table = new_table("backend", "plugin", "runs here", "targets that it times here")
    for row in rows:
        obstacle = row["cannot_be_run_here"]
        table.add_row(
            row["name"],
            row["plugin"],
            Text(f"no: {obstacle}" if obstacle else "yes"),
            ", ".join(row["times_here"]) or "none",
        )
    return table


# ---------------------------------------------------------------------- plans and findings


def plan_table(plan: Plan) -> RenderableType:
    table = new_table("", "pass", "options", "reason", right=("",))
    for number, step in enumerate(plan, 1):
        options = "\n".join(f"{name} = {_shown(value)}" for name, value in step.compression.options().items())
        table.add_row(str(number), step.compression.name, Text(options), Text(step.reason))
    for name, reason in plan.left_out.items():
        table.add_row("-", name, "", Text(f"Left out: {reason}"), style="dim")
    return table if table.row_count else Text("No pass pays here.")


def findings_table(findings: Sequence[Finding | FileFinding], profile: HardwareProfile) -> RenderableType:
    if not findings:
        return Text(f"{profile.title} takes this model whole.", style="green")
    table = new_table("", "what", "where")
    groups: dict[str, list[Finding | FileFinding]] = {}
    for finding in findings:
        groups.setdefault(finding.check.name, []).append(finding)
    for group in groups.values():
        check = group[0].check
        style = "red" if check.severity == "error" else "yellow"
        told = Text(check.sentence) + Text(f"\n{check.source}" if check.source else "", style="dim")
        places = "\n".join(dict.fromkeys(f"{each.op} in {each.module or 'forward'}" for each in group))
        table.add_row(Text(check.severity, style=style), told, Text(places))
    return table


# ---------------------------------------------------------------------- artifacts


def named_outputs(outputs: Any) -> dict[str, Any]:
    """The leaves of what a model returns, by their place in it."""
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    return {f"output{pytree.keystr(path)}": leaf for path, leaf in leaves}


def summary(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        return {"name": name, "value": value if isinstance(value, bool | int | float | str | None) else str(value)}
    described = {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": [*value.shape]}
    if not value.numel() or value.is_complex():
        return described
    real = value.to(torch.float64)
    statistics = {"min": real.min(), "mean": real.mean(), "max": real.max()}
    return described | {key: _finite(float(number)) for key, number in statistics.items()}


def _finite(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)  # JSON has no infinity


def outputs_table(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    table = new_table("output", "dtype", "shape", "min", "mean", "max", right=("min", "mean", "max"))
    for row in rows:
        cells = [
            f"{row[key]:.4g}" if isinstance(row.get(key), float) else str(row.get(key, ""))
            for key in ("min", "mean", "max")
        ]
        table.add_row(row["name"], row.get("dtype", ""), Text(str(row.get("shape", row.get("value")))), *cells)
    return table


def times_table(artifacts: Sequence[Artifact], latencies: Sequence[Latency]) -> RenderableType:
    table = new_table(
        "artifact", "size\nMB", "median\nms", "p95\nms", "speed", right=("size\nMB", "median\nms", "p95\nms", "speed")
    )
    for artifact, latency in zip(artifacts, latencies, strict=True):
        speed = latencies[0].median_ms / latency.median_ms
        p95 = _digits(latency.p95_ms) if latency.p95_ms is not None else ""
        size = _digits(artifact.size_bytes / 1e6)
        table.add_row(str(artifact.folder), size, _digits(latency.median_ms), p95, f"{speed:.2f}x")
    told = "\n".join(dict.fromkeys(f"Measured at batch {each.batch}: {each.how}." for each in latencies))
    return Group(table, Text(f"\n{told}", style="dim"))
