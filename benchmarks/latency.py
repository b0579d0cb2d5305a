"""INT8 latency, size and numerical quality of planish beside other tools: batch 1, one thread, one run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.models import WORKLOADS, Inputs, Workload, seeded_model
from benchmarks.ours import planish_int8
from benchmarks.peers import TOOLS, export_float, peer_file
from benchmarks.tables import machine, show, write_json
from benchmarks.timing import Contestant, outputs_of, paired_timings, signal_to_noise_db

BATCH = 8
# A calibrator moves the scales, not the operators that run: one of the three stands for their latency.
CONVOLUTION_PEERS = ("ort-minmax", "nncf-onnx", "nncf-openvino")
TRANSFORMER_PEERS = ("ort-minmax", "ort-dynamic", "nncf-onnx", "nncf-openvino")
BASELINE = "ort-minmax"
FRESH, FRESH_SEED, CALIBRATION_SEED = 16, 1, 2


def contestants(
    workload: Workload, model: nn.Module, images: int, with_planish: bool, folder: Path
) -> list[Contestant]:
    """Compress the model with every tool; the float model comes first."""
    calibration = [workload.draw(BATCH, CALIBRATION_SEED + step) for step in range(images // BATCH)]
    example = workload.draw(2, FRESH_SEED)
    float_onnx = export_float(model, example, workload.input_names, folder / "float.onnx")
    peers = TRANSFORMER_PEERS if "ids" in workload.input_names else CONVOLUTION_PEERS
    found = [Contestant("float", "onnxruntime", float_onnx)]
    for name in peers:
        path = peer_file(name, float_onnx, model, calibration, folder)
        found.append(Contestant(name, TOOLS[name].runtime, path))
    if with_planish:
        ours = planish_int8(model, example, calibration, folder / "planish")
        found.append(Contestant("planish", "onnxruntime", ours))
        found.append(Contestant("planish in openvino", "openvino", ours))
    return found


def table_rows(
    name: str, model: nn.Module, fresh: Inputs, compared: list[Contestant], rounds: int
) -> list[dict[str, Any]]:
    with torch.no_grad():
        reference = model(*fresh).numpy()
    one_row = tuple(tensor[:1] for tensor in fresh)
    timings = paired_timings(compared, one_row, BASELINE, rounds)
    sizes = {contestant.name: contestant.megabytes for contestant in compared}
    rows = []
    for contestant in compared:
        timing = timings[contestant.name]
        low, high = timing.ratio_quartiles
        rows.append(
            {
                "model": name,
                "tool": contestant.name,
                "runtime": contestant.runtime,
                "median ms": timing.median_ms,
                "p95 ms": timing.p95_ms,
                f"x {BASELINE}": timing.ratio,
                "ratio q1": low,
                "ratio q3": high,
                "calls": timing.calls,
                "MB": contestant.megabytes,
                f"size x {BASELINE}": contestant.megabytes / sizes[BASELINE],
                "SNR dB": signal_to_noise_db(reference, outputs_of(contestant, fresh, 1)),
            }
        )
    return rows


def main(
    models: Annotated[list[str] | None, typer.Option(help="Names; all if left out.")] = None,
    images: Annotated[int, typer.Option(help="Calibration inputs.")] = 128,
    rounds: Annotated[int, typer.Option(help="Times that each contestant has its turn.")] = 30,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
    without_planish: Annotated[bool, typer.Option("--without-planish", help="Only the peers.")] = False,
) -> None:
    unknown = set(models or ()) - WORKLOADS.keys()
    if unknown:
        raise typer.BadParameter(f"unknown models {sorted(unknown)}; there are {list(WORKLOADS)}")
    if images % BATCH:
        raise typer.BadParameter(f"--images must be a multiple of the batch, {BATCH}")
    notes = [
        f"{machine()['cpu']}; batch 1, one thread, a process each, {images} random calibration inputs.",
        f"x {BASELINE}: median over {rounds} rounds of the paired ratio, with quartiles; MB = 10^6 bytes.",
        f"SNR of the first output against PyTorch float on {FRESH} fresh inputs.",
        "OpenVINO runs what stays float in its default precision, bf16 where the processor has it.",
    ]
    rows: list[dict[str, Any]] = []
    for name in models or WORKLOADS:
        workload = WORKLOADS[name]
        model = seeded_model(workload)
        with TemporaryDirectory() as folder:
            compared = contestants(workload, model, images, not without_planish, Path(folder))
            found = table_rows(name, model, workload.draw(FRESH, FRESH_SEED), compared, rounds)
        show(f"{name}: INT8 latency", found)
        rows += found
        write_json(json, "latency", rows, notes)
    for note in notes:
        print(note)


if __name__ == "__main__":
    typer.run(main)
