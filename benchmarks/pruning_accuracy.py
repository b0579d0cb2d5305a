"""What is left of a model when channels are removed: accuracy after a short recovery, and time at equal MACs.

python -m benchmarks.pruning_accuracy cifar --folder out/pruning      # continues where it was killed
python -m benchmarks.pruning_accuracy one-shot                        # no training: weights fitted, or left alone
python -m benchmarks.pruning_accuracy resnet50
"""

from __future__ import annotations

import copy
import json
import time
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import planish
from benchmarks.images import Augmented, top1
from benchmarks.models import WORKLOADS, seeded_model
from benchmarks.peers import export_float
from benchmarks.tables import machine, show, write_json
from benchmarks.timing import Contestant, paired_timings
from benchmarks.zoo_cases import load_case, zoo
from planish.compiler.calibration import GIVEN, Calibration
from planish.compiler.contracts import Context
from planish.compiler.cost import totals
from planish.compiler.inputs import Inputs
from planish.compiler.targets import find_profile
from planish.passes.distill.losses import Loss

TARGET = "local"
app = typer.Typer()


class Parts(StrEnum):
    """What is removed."""

    channels = "channels"
    blocks = "blocks"


@app.command()
def cifar(
    folder: Annotated[Path, typer.Option(help="Results and checkpoints; what is there is not done again.")],
    speedups: Annotated[str, typer.Option(help="How many times fewer MACs.")] = "1.5,2,3",
    minutes: Annotated[float, typer.Option(help="Of recovery, for each.")] = 10.0,
    parts: Annotated[Parts, typer.Option(help="What is removed.")] = Parts.channels,
    criterion: Annotated[str, typer.Option(help="Of channels.")] = "l2",
    granularity: Annotated[int, typer.Option(help="Multiple of all widths.")] = 4,
    keep: Annotated[list[str] | None, typer.Option(help="Modules whose channels stay.")] = None,
    views: Annotated[int, typer.Option(help="Different epochs, whose answers by the whole model are kept.")] = 8,
    features: Annotated[float, typer.Option(help="Weight of the distance to the outputs of the stages.")] = 0.0,
    optimizer: Annotated[str, typer.Option(help="Of the recovery.")] = "sgd",
    rate: Annotated[float, typer.Option(help="Its learning rate.")] = 0.02,
    compiled: Annotated[bool, typer.Option("--compiled", help="Train by torch.compile.")] = False,
    blended: Annotated[bool, typer.Option("--blended", help="On mixtures of images, without their labels.")] = False,
    batches: Annotated[int | None, typer.Option(help="Of an epoch; fewer for a smoke test.")] = None,
    scored: Annotated[int | None, typer.Option(help="Test images; fewer for a smoke test.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """ResNet-44 on CIFAR-10: pruned at once, then distilled from itself. The test images are only scored."""
    case = load_case("resnet44-cifar10")
    source = zoo()
    pixels, labels = source.cifar10("train_20k")
    data = Augmented(source.imagenet_norm(pixels), labels, views, batches)
    images, truth = case.inputs[:scored], case.labels[:scored]
    whole = top1(case.model, images, truth)
    rows = []
    for speedup in map(float, speedups.split(",")):
        ratio = 1 - 1 / speedup
        prune = {
            Parts.blocks: planish.DropBlocks(ratio, of="macs"),
            Parts.channels: planish.PruneChannels(
                ratio, criterion=criterion, granularity=granularity, keep=tuple(keep or ()), samples=1024
            ),
        }[parts]
        name = "-".join([f"{speedup:g}x", parts, criterion, str(granularity), *(keep or ())])
        name += f"-{features:g}-features" if features else f"-{views}-views"
        name += f"-{optimizer}-{rate:g}" + ("-compiled" if compiled else "") + ("-blended" if blended else "")
        place = folder / f"{name}-{minutes:g}min.json"
        if not place.exists():
            training = planish.Training(
                minutes=minutes, optimizer=optimizer, learning_rate=rate, warmup=0.03, averaging=0.998,
                checkpoint=str(folder / place.stem), compiled=compiled,
            )  # fmt: skip
            distill = planish.Distill(
                losses=losses(features, blended), inner=[prune], training=training, blended=blended, diagnosis=False,
                cache=None if features or blended else str(folder / place.stem / "answers"),
            )  # fmt: skip
            row = recovered(case.model, data, distill)
            program = row.pop("program")
            row |= {"parts": parts, "top-1 %": top1(program, images, truth), "images": len(truth)}
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(row))
        row = json.loads(place.read_text())
        rows.append(row | {"minus whole": row["top-1 %"] - whole})
    notes = [
        machine()["cpu"],
        f"The whole model has {whole:.2f} % on these images (recorded: {100 * case.recorded:.2f}).",
    ]
    show("ResNet-44 on CIFAR-10", rows, notes)
    write_json(json_file, "pruning accuracy", rows, notes)


def losses(features: float, blended: bool) -> list[Loss]:
    """What the whole model says, and the labels, which mixtures have none of; and outputs of the stages."""
    found: list[Loss] = [planish.SoftTargets(temperature=4.0, weight=0.9)]
    if not blended:
        found.append(planish.HardLabels(weight=0.1))
    if features:  # between stages as wide as before, which --keep has to see to, or else by projectors
        found.append(planish.Features(pairs=("layer1", "layer2", "layer3"), weight=features))
    return found


def recovered(model: nn.Module, data: Augmented, distill: planish.Distill) -> dict[str, Any]:
    """One row of the table, with the Program that was made."""
    result = planish.compile(model, target=TARGET, example_inputs=(data.images[:2],), train=data, passes=[distill])
    before, after = result.report.baseline, result.report.result
    assert before is not None and after is not None and before.latency is not None and after.latency is not None
    return {
        "MACs": before.macs / after.macs,
        "parameters": before.parameters / after.parameters,
        "fp32 ms": after.latency.median_ms,
        "of whole": after.latency.median_ms / before.latency.median_ms,
        "minutes": distill.training.minutes,
        "threads": torch.get_num_threads(),
        "program": result.program,
    }


# ---------------------------------------------------------------------- without training


@app.command()
def one_shot(
    cases: Annotated[str, typer.Option(help="Of the zoo, in commas.")] = "resnet20-cifar10,resnet44-cifar10",
    speedups: Annotated[str, typer.Option(help="How many times fewer MACs.")] = "1.2,1.5,2",
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Channels removed by l2 at once, on 64 rows of calibration data: weights as the cut leaves them, and fitted."""
    rows = []
    for name in cases.split(","):
        case = load_case(name)
        program = planish.trace(case.model, Inputs((case.inputs[:2],)))
        data = Calibration([Inputs((images,)) for images in case.calibration.split(8)], GIVEN)
        for speedup in map(float, speedups.split(",")):
            row: dict[str, Any] = {"case": name, "whole, top-1 %": 100 * case.recorded}
            for told, reconstruct in (("cut", 0), ("fitted", 64)):
                context = Context(find_profile(TARGET), None, data)
                start = time.perf_counter()
                prune = planish.PruneChannels(1 - 1 / speedup, granularity=4, reconstruct=reconstruct)
                left = prune.run(program, context).eval()
                row |= {"MACs": totals(program).macs / totals(left).macs, f"{told}, s": time.perf_counter() - start,
                        f"{told}, top-1 %": top1(left, case.inputs, case.labels)}  # fmt: skip
            rows.append(row)
    notes = [machine()["cpu"], "No training. The test images are only scored."]
    show("Pruned at once", rows, notes)
    write_json(json_file, "one-shot pruning", rows, notes)


# ---------------------------------------------------------------------- time at equal MACs


@app.command()
def resnet50(
    ratio: Annotated[float, typer.Option(help="Share of the MACs to remove.")] = 0.5,
    rounds: int = 10,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """ResNet-50 in fp32 on ONNX Runtime, one thread: planish against Torch-Pruning at the same MACs, in turns."""
    workload = WORKLOADS["resnet50"]
    model, example = seeded_model(workload), workload.draw(1, 0)
    program = planish.trace(model, Inputs(workload.draw(2, 0)))
    whole = totals(program).macs
    peers = {
        "torch-pruning": by_torch_pruning(model, example, ratio),
        "torch-pruning, of 16": by_torch_pruning(model, example, ratio, 16),
    }
    context = Context(find_profile(TARGET), None, Calibration([], "drawn"))
    macs = {"whole": whole}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = [
            Contestant(
                "whole",
                "onnxruntime",
                export_float(model, workload.draw(2, 0), workload.input_names, folder / "whole.onnx"),
            )
        ]
        for name, pruned in peers.items():
            macs[name] = totals(planish.trace(pruned, Inputs(workload.draw(2, 0)))).macs
            files.append(exported(name, pruned, folder))
            ours = planish.PruneChannels(ratio=1 - macs[name] / whole).run(program, context)
            own = f"planish at the MACs of {name}"
            macs[own] = totals(ours).macs
            files.append(exported(own, ours.module().eval(), folder))
        timings = paired_timings(files, example, "whole", rounds)
    rows = [
        {"model": name, "GMAC": macs[name] / 1e9, "ms": timing.median_ms, "of whole": timing.ratio}
        for name, timing in timings.items()
    ]
    notes = [machine()["cpu"], "Random weights; one thread, batch 1, fp32."]
    show("ResNet-50 at equal MACs", rows, notes)
    write_json(json_file, "pruned latency", rows, notes)


def exported(name: str, model: nn.Module, folder: Path) -> Contestant:
    workload = WORKLOADS["resnet50"]
    file = folder / f"{name.replace(' ', '-').replace(',', '')}.onnx"
    return Contestant(name, "onnxruntime", export_float(model, workload.draw(2, 0), workload.input_names, file))


def by_torch_pruning(
    model: nn.Module, example: tuple[Tensor, ...], ratio: float, multiple: int | None = None
) -> nn.Module:
    """The model after its one-shot pruning by L2 norm, with the smallest ratio that removes ``ratio`` of the MACs."""
    try:
        import torch_pruning
    except ImportError as failure:
        raise SystemExit("Install the peer: pip install torch-pruning==1.6.1") from failure

    whole, _ = torch_pruning.utils.count_ops_and_params(model, example)
    for percent in range(int(100 * ratio / 2), 100):
        pruned = copy.deepcopy(model)
        head = [module for module in pruned.modules() if isinstance(module, nn.Linear)][-1:]
        pruner = torch_pruning.pruner.MagnitudePruner(
            pruned, example, torch_pruning.importance.GroupMagnitudeImportance(p=2), pruning_ratio=percent / 100,
            ignored_layers=head, round_to=multiple,
        )  # fmt: skip
        pruner.step()
        left, _ = torch_pruning.utils.count_ops_and_params(pruned, example)
        if left <= (1 - ratio) * whole:
            return pruned.eval()
    raise SystemExit(f"Torch-Pruning does not remove {ratio:.0%} of the MACs.")


if __name__ == "__main__":
    app()
