"""What is left of a model when channels are removed: accuracy after a short recovery, and time at equal MACs.

python -m benchmarks.pruning_accuracy cifar --folder out/pruning      # continues where it was killed
python -m benchmarks.pruning_accuracy resnet50
"""

from __future__ import annotations

import copy
import json
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from torch import Tensor, nn

import planish
from benchmarks.images import Augmented, top1
from benchmarks.models import WORKLOADS, seeded_model
from benchmarks.peers import export_float
from benchmarks.tables import machine, show, write_json
from benchmarks.timing import Contestant, paired_timings
from benchmarks.zoo_cases import load_case, zoo
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context, Pass
from planish.compiler.cost import totals
from planish.compiler.inputs import Inputs
from planish.compiler.targets import find_profile

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
        place = folder / f"{name}-{views}-views-{minutes:g}min.json"
        if not place.exists():
            row = recovered(case.model, data, prune, minutes, folder / place.stem)
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


def recovered(model: nn.Module, data: Augmented, prune: Pass, minutes: float, place: Path) -> dict[str, Any]:
    """One row of the table, with the Program that was made."""
    training = planish.Training(
        minutes=minutes, learning_rate=0.02, warmup=0.03, averaging=0.998, checkpoint=str(place)
    )
    losses = [planish.SoftTargets(temperature=4.0, weight=0.9), planish.HardLabels(weight=0.1)]
    distill = planish.Distill(
        losses=losses, inner=[prune], training=training, cache=str(place / "answers"), diagnosis=False
    )
    result = planish.compile(model, target=TARGET, example_inputs=(data.images[:2],), train=data, passes=[distill])
    before, after = result.report.baseline, result.report.result
    assert before is not None and after is not None and before.latency is not None and after.latency is not None
    return {
        "MACs": before.macs / after.macs,
        "parameters": before.parameters / after.parameters,
        "fp32 ms": after.latency.median_ms,
        "of whole": after.latency.median_ms / before.latency.median_ms,
        "minutes": minutes,
        "program": result.program,
    }


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
