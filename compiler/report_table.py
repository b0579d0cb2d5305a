"""A Report for people: notes first, one row a step, then what ran otherwise than planned and why."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planish.compiler.report import Decision, Error, Figures, Latency, Report, Step

WIDTH = 100
NAME_WIDTH = 20
"""Longer names of passes are folded."""
MODULES_NAMED = 4
"""Of a group of decisions, so many modules are named here; report.json has all."""
GROUPS_SHOWN = 12
STYLES = {"kept": "green", "undone": "yellow", "kept on request": "yellow", "exact": "dim"}


def as_text(report: Report, width: int = WIDTH) -> str:
    """The report as plain text, at most ``width`` characters wide."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(as_renderable(report))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def as_renderable(report: Report) -> RenderableType:
    """The report for ``rich.console.Console.print``."""
    kept = [step for step in report.steps if step.outcome != "undone"]
    return Group(
        *_header(report),
        *_section("Notes", _bullets(report.notes)),
        Text(),
        _table(report),
        *_section("Steps", _steps(report.steps)),
        *_section("Left out of the plan", _pairs(report.not_planned.items())),
        *_section("What the runtime does otherwise than planned", _decisions(report.runtime_decisions)),
        *(part for step in kept for part in _section(f"Decisions of {step.compression}", _decisions(step.decisions))),
        *_section("Artifact against its Program", _errors(report.errors)),
        *_section("Measured on the device", _bullets(map(str, report.on_device))),
        Text(),
        _footer(report),
    )


# ---------------------------------------------------------------------- header and footer


def _header(report: Report) -> Iterator[RenderableType]:
    yield Text.assemble((report.model, "bold"), " for ", (report.target, "bold"), f", by the {report.backend} backend")
    if outcome := ", ".join(_gains(report)):
        yield Text(outcome)


def _gains(report: Report) -> Iterator[str]:
    """What the compilation changed, in figures."""
    before, after = report.baseline, report.result
    if before is None or after is None or before == after:
        return
    speed = _speed_of_all(report)
    if speed is not None and after.latency is not None:
        yield f"{speed:.2f}x as fast ({after.latency.source})"
    yield f"{after.size_bytes / before.size_bytes:.2f} of the size"
    if before.metric is not None and after.metric is not None:
        yield f"metric {before.metric:.4f} -> {after.metric:.4f}"


def _footer(report: Report) -> RenderableType:
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items())
    lines = [f"Took {sum(report.seconds.values()):.1f} s ({stages}), peak memory {report.peak_memory_mb:,.0f} MiB."]
    lines += dict.fromkeys(_told(latency) for latency in _latencies(report))
    return Text("\n".join(lines), style="dim")


def _latencies(report: Report) -> Iterator[Latency]:
    for figures in (report.baseline, *(step.after for step in report.steps), report.result):
        if figures is not None and figures.latency is not None:
            yield figures.latency


def _told(latency: Latency) -> str:
    return f"Latency is {latency.source} at batch {latency.batch}: {latency.how}."


# ---------------------------------------------------------------------- the table


def _table(report: Report) -> Table:
    rows = [*_rows(report)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="dim")
    used = [column for column in _COLUMNS if any(column.header in cells for cells, _ in rows)]
    for column in used:
        longest = max(cell_len(cells.get(column.header, Text()).plain) for cells, _ in rows)
        keep_whole = column.header != "outcome" and longest <= NAME_WIDTH
        table.add_column(column.header, justify=column.justify, no_wrap=keep_whole, overflow="fold")
    for cells, style in rows:
        table.add_row(*(cells.get(column.header, Text()) for column in used), style=style)
    return table


@dataclass(frozen=True)
class _Column:
    header: str
    justify: Literal["left", "right"] = "right"


_COLUMNS = (
    _Column("step", "left"),
    _Column("outcome", "left"),
    _Column("size\nMB"),
    _Column("MACs\nM"),
    _Column("measured\nms"),  # a column of its own for each source of latency: they are never compared
    _Column("estimated\nms"),
    _Column("speed"),
    _Column("metric"),
    _Column("SNR\ndB"),
    _Column("time\ns"),
    _Column("peak\nMiB"),
)
"""In this order; a column that no row fills is left out."""

_Row = tuple[dict[str, Text], str]
"""The cells by header, and the style of the row."""


def _rows(report: Report) -> Iterator[_Row]:
    if report.baseline is not None:
        yield {"step": Text("baseline"), **_cells(report.baseline, None)}, ""
    for step in report.steps:
        cells = {"step": Text(step.compression), "outcome": Text(step.outcome, style=STYLES[step.outcome])}
        cells |= _cells(step.after, _speed(step))
        cells |= {"time\ns": Text(f"{step.seconds:.1f}"), "peak\nMiB": Text(f"{step.peak_memory_mb:.0f}")}
        yield cells, "" if step.after is not None and step.outcome != "undone" else "dim"
    if report.result is not None and any(step.after is not None for step in report.steps):
        yield {"step": Text("result"), **_cells(report.result, _speed_of_all(report))}, "bold"


def _cells(figures: Figures | None, speed: float | None) -> dict[str, Text]:
    if figures is None:
        return {}
    told = {"size\nMB": _number(figures.size_bytes / 1e6), "MACs\nM": _number(figures.macs / 1e6)}
    if figures.latency is not None:
        told[f"{figures.latency.source}\nms"] = _number(figures.latency.median_ms)
    if speed is not None:
        told["speed"] = f"{speed:.2f}x"
    if figures.metric is not None:
        told["metric"] = f"{figures.metric:.4f}"
    if figures.snr_db is not None:
        told["SNR\ndB"] = f"{figures.snr_db:.1f}"
    return {header: Text(cell) for header, cell in told.items()}


def _speed(step: Step) -> float | None:
    """How many times as fast the step made the artifact; both times come from one run."""
    before, after = step.before and step.before.latency, step.after and step.after.latency
    if not before or not after or not after.median_ms or before.source != after.source:
        return None
    return before.median_ms / after.median_ms


def _speed_of_all(report: Report) -> float | None:
    """The product over the steps that were kept: times of different runs are not divided by each other."""
    judged = [_speed(step) for step in report.steps if step.outcome != "undone" and step.after is not None]
    known = [speed for speed in judged if speed is not None]
    return math.prod(known) if known and len(known) == len(judged) else None


def _number(value: float) -> str:
    """Three digits that count, never an exponent for large values."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ---------------------------------------------------------------------- what stands below it


def _section(title: str, body: RenderableType | None) -> Iterator[RenderableType]:
    if body is not None:
        yield Text()
        yield Text(title, style="bold")
        yield Padding(body, (0, 0, 0, 2))


def _grid(*justify: str, gap: int = 2) -> Table:
    grid = Table.grid(padding=(0, gap, 0, 0))
    for side in justify:
        grid.add_column(justify=side, overflow="fold")  # type: ignore[arg-type]
    return grid


def _bullets(sentences: Iterable[str]) -> RenderableType | None:
    grid = _grid("left", "left", gap=1)
    for sentence in sentences:
        grid.add_row(Text("-", style="dim"), Text(sentence))
    return grid if grid.row_count else None


def _pairs(pairs: Iterable[tuple[str, str]]) -> RenderableType | None:
    grid = _grid("left", "left")
    for name, told in pairs:
        grid.add_row(Text(name), Text(told))
    return grid if grid.row_count else None


def _steps(steps: Iterable[Step]) -> RenderableType | None:
    grid = _grid("left", "left")
    for step in steps:
        options = ", ".join(f"{name} {_option(value)}" for name, value in step.options.items() if value != [])
        told = Text(f"{step.reason} ") + Text(step.verdict, style=STYLES[step.outcome])
        told += "".join(f"\n{note}" for note in step.notes)
        if options:
            told += Text(f"\n{options}", style="dim")
        grid.add_row(Text(step.compression), told)
    return grid if grid.row_count else None


def _option(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _decisions(decisions: Iterable[Decision]) -> RenderableType | None:
    """Folded by outcome and reason; what stays float first, then the largest groups."""
    groups: dict[tuple[str, str], list[Decision]] = {}
    for decision in decisions:
        groups.setdefault((decision.outcome, decision.reason), []).append(decision)
    ordered = sorted(groups.items(), key=lambda group: (group[0][0] != "float", -len(group[1])))
    grid = _grid("right", "left", "left")
    for (outcome, reason), group in ordered[:GROUPS_SHOWN]:
        grid.add_row(Text(str(len(group))), Text(outcome), Text(reason) + Text(f"\n{_modules(group)}", style="dim"))
    if rest := sum(len(group) for _, group in ordered[GROUPS_SHOWN:]):
        grid.add_row(Text(str(rest)), Text("more"), Text("for other reasons: report.json has them"))
    return grid if grid.row_count else None


def _modules(group: list[Decision]) -> str:
    names = [
        *dict.fromkeys(f"{decision.op} in {decision.module}" if decision.module else decision.op for decision in group)
    ]
    more = f" and {len(names) - MODULES_NAMED} more" if len(names) > MODULES_NAMED else ""
    return ", ".join(names[:MODULES_NAMED]) + more


def _errors(errors: Iterable[Error]) -> RenderableType | None:
    return _pairs((f"output {error.output}", _distance(error)) for error in errors)


def _distance(error: Error) -> str:
    if error.snr_db is None and error.max_abs == 0:
        return "equal to the last bit"
    parts = [f"largest error {error.max_abs:.2g} ({error.max_relative:.2g} of the largest value)"]
    if error.snr_db is not None:
        parts.append(f"SNR {error.snr_db:.1f} dB")
    if error.within_a_quantum is not None:
        parts.append(f"{error.within_a_quantum:.1%} of the values within one quantum of 8 bits")
    return ", ".join(parts)
