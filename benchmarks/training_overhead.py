"""What the training loop costs beside a bare PyTorch loop, and what compiling it saves.

python -m benchmarks.training_overhead loop
python -m benchmarks.training_overhead compiled
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

import planish
from benchmarks.distillation_models import loader, mnist_net
from benchmarks.tables import Row, machine, show, write_json
from benchmarks.zoo_cases import zoo
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.program import Program
from planish.compiler.targets import find_profile
from planish.compiler.training_data import TrainingData
from planish.passes.training.fit import fit
from planish.passes.training.settings import Training

app = typer.Typer()


def rounds(model: nn.Module, inputs: Tensor, labels: Tensor, batch: int, precision: str) -> Iterator[list[float]]:
    """Seconds of an epoch by ``fit``, by a bare loop over the module, and by one over its graph, in turns."""
    data = loader(inputs, labels, batch)
    program = planish.trace(model, inputs[:2])

    def bare(trained: nn.Module) -> float:
        optimizer = torch.optim.SGD(trained.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(data))
        start = time.perf_counter()
        for x, y in data:
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                scores = trained(x)
            F.cross_entropy(scores.float(), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return time.perf_counter() - start

    def ours() -> float:
        training = Training(epochs=1, learning_rate=1e-3, precision=precision)
        records = fit(
            program, TrainingData(data), lambda out, batch: {"loss": F.cross_entropy(out, batch.labels)}, training
        ).history.records  # fmt: skip
        return records[-1].seconds - records[0].seconds

    def graph() -> nn.Module:
        return program.copy().train().graph_module

    bare(model.train()), bare(graph()), ours()
    while True:
        yield [ours(), bare(model), bare(graph())]


@app.command()
def loop(repeats: int = 9, batches: int = 40, json_file: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """The loop against a bare PyTorch loop: same batches, optimizer, precision."""
    small, large = torch.randn(1280 * batches, 784), torch.randn(128 * batches, 3, 32, 32)
    models = {"MLP 784-300-100-10": (mnist_net(300, 100), small), "ResNet-20": (zoo().CifarResNet(20), large)}
    rows: list[Row] = []
    for name, (model, inputs) in models.items():
        for precision in ("fp32", "bf16"):
            found = rounds(model, inputs, torch.randint(10, (len(inputs),)), 128, precision)
            fits, modules, graphs = zip(*(next(found) for _ in range(repeats)), strict=True)
            row: Row = {
                "model": name,
                "precision": precision,
                "ms a step": 1e3 * statistics.median(modules) / (len(inputs) // 128),
            }
            for told, bare in (("module", modules), ("graph", graphs)):
                ratios = [ours / other for ours, other in zip(fits, bare, strict=True)]
                lower, middle, upper = statistics.quantiles(ratios, n=4)
                row |= {f"fit / bare {told}": middle, f"{told}: quartiles": f"{lower:.3f} {upper:.3f}"}
            rows.append(row)
    notes = [machine()["cpu"], "Batch 128, an epoch each, in turns: median ratio of the rounds. All channels last."]
    notes.append("A bare loop over the graph runs the same ops: what fit takes more than that is the loop.")
    show("Time of the loop", rows, notes)
    write_json(json_file, "training overhead", rows, notes)


# ---------------------------------------------------------------------- compiled


@app.command()
def compiled(steps: int = 30, json_file: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """ResNet-44 and its half in width, 32 x 32 images, batch 128: the time of a step with and without torch.compile."""
    rows: list[Row] = []
    for name, ratio in (("ResNet-44", None), ("ResNet-44, half the MACs", 0.5)):
        program = planish.trace(zoo().CifarResNet(44), torch.randn(2, 3, 32, 32))
        if ratio is not None:
            here = Context(find_profile("local"), None, Calibration([], "drawn"))
            program = planish.PruneChannels(ratio, granularity=4).run(program, here)
        for precision in ("fp32", "bf16"):
            plain, fast = (_steps(program, precision, each, steps) for each in (False, True))
            rows.append({"model": name, "precision": precision, "ms a step": plain[1], "compiled": fast[1],
                         "compiled / plain": fast[1] / plain[1], "first step, s": fast[0] / 1e3})  # fmt: skip
    notes = [machine()["cpu"], f"{torch.get_num_threads()} threads; median of the steps behind the first five."]
    show("Training by torch.compile", rows, notes)
    write_json(json_file, "compiled training", rows, notes)


def _steps(program: Program, precision: str, compiled: bool, steps: int) -> tuple[float, float]:
    """Milliseconds of the first step, and of the median one."""
    torch._dynamo.reset()
    ends: list[float] = []
    batch = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    training = Training(steps=steps, precision=precision, compiled=compiled, learning_rate=1e-3)
    fit(program, TrainingData([batch] * steps), lambda out, batch: {"loss": F.cross_entropy(out, batch.labels)},
        training, after_step=lambda program, share: ends.append(1e3 * time.perf_counter()))  # fmt: skip
    first, *others = [after - before for before, after in itertools.pairwise(ends)]
    return first, statistics.median(others[4:])


if __name__ == "__main__":
    app()
