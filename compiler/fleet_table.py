"""A Fleet for people: one row a target, then what failed and why."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from planish.compiler.fleet import Fleet
from planish.compiler.report import Figures, Report

WIDTH = 140
COLUMNS = ("target", "backend", "ms", "as fast", "MB", "of the size", "metric", "SNR dB", "kept")


def as_text(fleet: Fleet) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(as_renderable(fleet))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def as_renderable(fleet: Fleet) -> RenderableType:
    """The table for ``rich.console.Console.print``."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="dim")
    for name in COLUMNS:
        numbers = name in ("ms", "as fast", "MB", "of the size", "metric", "SNR dB")
        table.add_column(name, justify="right" if numbers else "left", no_wrap=name != "kept", overflow="fold")
    for target in fleet.targets:
        if target in fleet:
            table.add_row(*_row(fleet[target].report))
        else:
            table.add_row(target, "failed", style="red")
    return Group(table, *(Text(line) for line in _below(fleet)))


def _row(report: Report) -> Iterator[str]:
    before, after = report.baseline, report.result
    assert before is not None and after is not None
    yield report.target
    yield report.backend
    yield _milliseconds(after)
    yield _speed(before, after)
    yield f"{after.size_bytes / 1e6:.2f}"
    yield f"{after.size_bytes / before.size_bytes:.2f}"
    yield "" if after.metric is None else f"{after.metric:.4f}"
    yield "" if after.snr_db is None else f"{after.snr_db:.1f}"
    yield ", ".join(step.compression for step in report.steps if step.outcome.startswith("kept")) or "none"


def _milliseconds(figures: Figures) -> str:
    latency = figures.latency
    return "" if latency is None else f"{latency.median_ms:.3g} {latency.source}"


def _speed(before: Figures, after: Figures) -> str:
    if before.latency is None or after.latency is None:
        return ""
    return f"{before.latency.median_ms / after.latency.median_ms:.2f}x"


def _below(fleet: Fleet) -> Iterator[str]:
    yield "ms: of one call, measured here or a roofline estimate; as fast, of the size: against the target's float one."
    for target, result in fleet.items():
        counts = Counter(fleet.reused.get(target, {}).values())
        if counts:
            taken, passes = ", ".join(f"{count} of {of}" for of, count in counts.items()), len(result.report.steps)
            yield f"{target} takes over {taken}, of its {passes} passes: nothing that they read differs."
    for target, failure in fleet.failures.items():
        yield f"{target} failed: {type(failure).__name__}: {failure}"
