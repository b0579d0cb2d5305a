"""What the coupling analysis costs: time and memory beside Torch-Pruning 1.6.1, and how they grow with depth.

    python -m benchmarks.pruning                              # some two minutes
    python -m benchmarks.pruning --rounds 5 --json pruning.json

Both tools start after what they need to look at the model once: planish from a traced Program, Torch-Pruning from the
module. Its analysis runs the model for that; ``trace`` is the row to add to planish where no Program is at hand.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

from benchmarks.compile_cost_worker import memory_mib
from benchmarks.models import WORKLOADS, bottleneck, resnet
from benchmarks.tables import machine, show, write_json
from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.groups import Coupling, couple
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.shapes import ensure_shapes
from planish.compiler.trace import trace

DEPTHS = (3, 4, 6, 3)
RATIO = 0.5


@dataclass
class Figures:
    """Of each round: seconds on the clock, seconds of processor time, and MiB that the peak lay above the start."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def take(self, run: Callable[[], object]) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed and not given back would be used again, unseen
        before = memory_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # man proc_pid_clear_refs: resets the peak
        start, spent = time.perf_counter(), time.process_time()
        run()
        self.wall.append(time.perf_counter() - start)
        self.processor.append(time.process_time() - spent)
        self.memory.append(memory_mib("VmHWM") - before)

    def row(self) -> dict[str, float]:
        return {
            "ms": 1e3 * median(self.wall),
            "fastest ms": 1e3 * min(self.wall),
            "processor ms": 1e3 * median(self.processor),
            "MiB added": max(self.memory),
        }


# ---------------------------------------------------------------------- beside Torch-Pruning


def beside_torch_pruning(name: str, rounds: int) -> list[dict[str, Any]]:
    """Paired: each round every tool once (A B C D A B C D …)."""
    peer = torch_pruning()
    workload = WORKLOADS[name]
    model, example = workload.build().eval(), workload.draw(2, 0)
    program = traced(model, example)

    def pruned_by_peer() -> None:
        pruned = copies.pop()
        head = [module for module in pruned.modules() if isinstance(module, nn.Linear)][-1:]
        importance = peer.importance.GroupMagnitudeImportance(p=2)
        peer.pruner.MagnitudePruner(pruned, example, importance, pruning_ratio=RATIO, ignored_layers=head).step()

    copies: list[nn.Module] = []
    tasks: dict[tuple[str, str], Callable[[], object]] = {
        ("planish", "trace"): lambda: traced(model, example),
        ("planish", "analysis"): lambda: couple(program),
        ("planish", "analysis, 50 % cut"): lambda: halved(couple(program)),
        ("Torch-Pruning", "analysis"): lambda: all_groups(peer, copies.pop(), example),
        ("Torch-Pruning", "analysis, 50 % cut"): pruned_by_peer,
    }
    figures = {task: Figures() for task in tasks}
    for _ in range(rounds + 1):
        for task, run in tasks.items():
            copies[:] = [copy.deepcopy(model)] if task[0] == "Torch-Pruning" else []
            figures[task].take(run)
    for each in figures.values():  # the first round finds cold caches
        del each.wall[0], each.processor[0]
    return [{"model": name, "tool": tool, "what": what, **figures[tool, what].row()} for tool, what in tasks]


def torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as failure:
        raise SystemExit("Install the peer: pip install --no-deps torch-pruning==1.6.1") from failure


def all_groups(peer: Any, model: nn.Module, example: tuple[torch.Tensor, ...]) -> list[Any]:
    graph = peer.DependencyGraph().build_dependency(model, example_inputs=example)
    return [*graph.get_all_groups()]


def traced(model: nn.Module, example: tuple[torch.Tensor, ...]) -> Program:
    program = trace(model, Inputs(example))
    ensure_shapes(program)
    return program


def halved(coupling: Coupling) -> Program:
    """Without the first half of the units of every group."""
    return cut(coupling, {group: np.arange(int(group.width * RATIO)) for group in coupling.groups})


# ---------------------------------------------------------------------- against depth


def against_depth(rounds: int) -> list[dict[str, Any]]:
    """ResNet-50 with 1, 2, 4 and 8 times its blocks."""
    return [row for times in (1, 2, 4, 8) for row in rows_at_depth(times, rounds)]


def rows_at_depth(times: int, rounds: int) -> list[dict[str, Any]]:
    model = resnet(bottleneck, 4, [times * depth for depth in DEPTHS]).eval()
    program = traced(model, (torch.randn(2, 3, 64, 64),))
    coupling = couple(program)
    nodes = len(coupling.program.graph.nodes)
    tasks: dict[str, Callable[[], object]] = {
        "analysis": lambda: couple(program),
        "analysis, 50 % cut": lambda: halved(couple(program)),
    }
    figures = {what: Figures() for what in tasks}
    for _ in range(rounds):
        for what, run in tasks.items():
            figures[what].take(run)
    return [
        {
            "depth": f"{times}x", "nodes": nodes, "groups": len(coupling.groups), "what": what,
            **each.row(), "us per node": 1e6 * min(each.processor) / nodes,
        }
        for what, each in figures.items()
    ]  # fmt: skip


def main(
    models: Annotated[list[str] | None, typer.Option(help="Of the latency benchmark; resnet50 if left out.")] = None,
    rounds: Annotated[int, typer.Option(help="Runs of each task, in turn.")] = 9,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
) -> None:
    torch.set_num_threads(1)
    unknown = set(models or ()) - set(WORKLOADS)
    if unknown:
        raise typer.BadParameter(f"unknown models {sorted(unknown)}; there are {list(WORKLOADS)}")
    notes = [
        f"{machine()['cpu']}, one thread; {rounds} rounds in turn, medians; memory: the largest peak above the start.",
        "us per node: the fastest round, in processor time, which other processes disturb least.",
    ]
    rows = []
    for name in models or ["resnet50"]:
        rows += beside_torch_pruning(name, rounds)
    show("Coupling analysis", rows)
    deeper = against_depth(rounds)
    show("Cost against depth", deeper, notes)
    write_json(json, "pruning", [*rows, *deeper], notes)


if __name__ == "__main__":
    typer.run(main)
