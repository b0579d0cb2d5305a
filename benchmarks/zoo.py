"""``make zoo``: what the coupling analysis finds in every model family at hand, and whether cutting it is exact.

    python -m benchmarks.zoo                                  # all of them, some 25 minutes on one core
    python -m benchmarks.zoo resnet50 BERT --json zoo.json    # by name
    python -m benchmarks.zoo --kind usual                     # those that users have

One line a family: what was found, how much of the MACs it governs, half of every group cut at once and compared with
the masked reference in float64 and with ONNX Runtime in float32. Weights are random. Exit code 1 if a family fails.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from benchmarks.tables import machine, write_json
from benchmarks.zoo_families import Draw, ZooFamily, zoo
from planish.backends.to_onnx.exporter import lower_any
from planish.compiler.cost import totals
from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.groups import Coupling, couple
from planish.compiler.errors import LoweringError, closest
from planish.compiler.program import Program, op_name
from planish.compiler.shapes import ensure_shapes
from planish.compiler.trace import trace
from tests.backends.to_onnx.families import OPSET, relative_error, run_onnx
from tests.compiler.coupling.oracle import enliven, judge, some_of_all

EXACT = 1e-10
ONNX_AGREES = 1e-4
MOVED = 1e-6
ROUNDS = 3


@dataclass(frozen=True)
class Row:
    family: str
    kind: str
    nodes: int | None = None
    groups: int | None = None
    prunable: float | None = None
    """Share of the MACs that is gone when every group has one unit left."""
    error: float | None = None
    """Against the masked reference, half of every group cut; None where nothing can be cut."""
    moved: float | None = None
    """How far that cut moves the outputs: near zero, ``error`` would prove nothing."""
    macs_left: float | None = None
    onnx_error: float | None = None
    not_in_onnx: bool = False
    """It cannot be lowered, uncut neither."""
    couple_ms: float | None = None
    microseconds_per_node: float | None = None
    cut_ms: float | None = None
    not_understood: tuple[str, ...] = ()
    failure: str = ""

    @property
    def remark(self) -> str:
        remarks = [self.failure or ("" if self.good else "FAILS"), ", ".join(self.not_understood)]
        return "; ".join(filter(None, [*remarks, "no lowering to ONNX, uncut neither" * self.not_in_onnx]))

    @property
    def good(self) -> bool:
        if self.failure:
            return False
        if not self.groups:
            return True
        assert self.error is not None and self.moved is not None
        agrees = self.not_in_onnx or (self.onnx_error is not None and self.onnx_error <= ONNX_AGREES)
        return self.error <= EXACT and self.moved > MOVED and agrees


def examine(family: ZooFamily) -> Row:
    """All that is known of ``family``; what raises on the way ends up in the Row."""
    row = Row(family.name, family.kind)
    try:
        torch.manual_seed(0)
        program = trace(enliven(family.build()).eval(), family.inputs(2))
        ensure_shapes(program)
        milliseconds, coupling = timed(lambda: couple(program))
        nodes = len(coupling.program.graph.nodes)
        row = replace(
            row, nodes=nodes, groups=len(coupling.groups), couple_ms=milliseconds,
            microseconds_per_node=1e3 * milliseconds / nodes,
            not_understood=tuple(sorted({op_name(node) for node in coupling.not_understood})),
        )  # fmt: skip
        return _examine_cut(row, family, coupling) if coupling.groups else replace(row, prunable=0.0)
    except Exception as failure:  # the table lists it
        return replace(row, failure=f"{type(failure).__name__}: {str(failure).strip().splitlines()[0][:120]}")


def _examine_cut(row: Row, family: ZooFamily, coupling: Coupling) -> Row:
    removed = some_of_all(coupling, np.random.default_rng(0))
    milliseconds, smaller = timed(lambda: cut(coupling, removed))
    whole_macs = totals(coupling.program).macs
    smallest = cut(coupling, some_of_all(coupling, np.random.default_rng(0), share=1))
    row = replace(
        row,
        cut_ms=milliseconds,
        macs_left=totals(smaller).macs / whole_macs,
        prunable=1 - totals(smallest).macs / whole_macs,
    )
    verdict = judge(coupling, removed, coupling.program.example_inputs)
    row = replace(row, error=verdict.error, moved=verdict.moved)
    try:
        return replace(row, onnx_error=onnx_error(smaller, family.inputs))
    except LoweringError:
        fail_if_it_lowers(coupling.program)
        return replace(row, not_in_onnx=True)


def fail_if_it_lowers(program: Program) -> None:
    """Returns if ``program`` cannot be lowered; raises if it can, for then cutting has spoilt it."""
    try:
        lower_any(program, OPSET)
    except LoweringError:
        return
    raise AssertionError("it lowers to ONNX uncut, and not cut")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, the median of a few rounds, and the result."""
    taken, result = [], None
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = run()
        taken.append(1e3 * (time.perf_counter() - start))
    return median(taken), result


def onnx_error(program: Program, draw: Draw) -> float:
    """Largest difference to ONNX Runtime, relative to the largest value; at two batch sizes where they may differ."""
    model, _ = lower_any(program, OPSET)
    worst = 0.0
    for batch in (2, 3) if program.dynamic_axes else (2,):
        inputs = draw(batch)
        with torch.no_grad():
            results = inputs.call(program)
        wanted = [leaf for leaf in torch.utils._pytree.tree_leaves(results) if isinstance(leaf, Tensor)]
        got = run_onnx(model, inputs)
        worst = max([worst, *(relative_error(*pair) for pair in zip(wanted, got, strict=True))])
    return worst


# ---------------------------------------------------------------------- the table

COLUMNS: dict[str, tuple[int, Callable[[Row], str]]] = {
    "family": (38, lambda row: row.family[:38]),
    "nodes": (6, lambda row: _number(row.nodes, "d")),
    "groups": (7, lambda row: _number(row.groups, "d")),
    "MACs prunable": (14, lambda row: _number(row.prunable, ".0%")),
    "oracle": (8, lambda row: _number(row.error, ".0e")),
    "50 %: MACs left": (16, lambda row: _number(row.macs_left, ".0%")),
    "ONNX": (8, lambda row: _number(row.onnx_error, ".0e")),
    "groups ms": (10, lambda row: _number(row.couple_ms, ".0f")),
    "us/node": (8, lambda row: _number(row.microseconds_per_node, ".0f")),
    "cut ms": (7, lambda row: _number(row.cut_ms, ".0f")),
    "": (0, lambda row: "  " + row.remark),
}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def line(row: Row | None) -> str:
    """A row of the table; its header for None."""
    cells = [(name if row is None else show(row), width) for name, (width, show) in COLUMNS.items()]
    first, *others = cells
    return first[0].ljust(first[1]) + "".join(text.rjust(width) for text, width in others)


def chosen(names: list[str], kind: str | None) -> list[ZooFamily]:
    families = {family.name: family for family in zoo()}
    for name in names:
        if name not in families:
            raise typer.BadParameter(f"unknown family {name!r}{closest(name, families)}")
    return [families[name] for name in names or families if kind is None or families[name].kind == kind]


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Families; all if left out.")] = None,
    kind: Annotated[str | None, typer.Option(help="usual or further.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
) -> None:
    torch.set_num_threads(1)
    families = chosen(names or [], kind)
    print(line(None), flush=True)
    rows = []
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("zoo", total=len(families))
        for family in families:
            bar.update(task, description=family.name)
            rows.append(examine(family))
            gc.collect()
            print(line(rows[-1]), flush=True)
            write_json(json, "zoo", [asdict(row) | {"good": row.good} for row in rows])
            bar.advance(task)
    failing = [row.family for row in rows if not row.good]
    print(summary(rows))
    sys.exit(1 if failing else 0)


def summary(rows: list[Row]) -> str:
    failing = [row.family for row in rows if not row.good]
    whole = [row.family for row in rows if row.good and not row.groups]
    lines = [f"{len(rows) - len(failing)} of {len(rows)} families exact. {machine()['cpu']}, one thread."]
    if whole:
        lines.append(f"Nothing to cut in: {', '.join(whole)}.")
    if failing:
        lines.append(f"Failing: {', '.join(failing)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
