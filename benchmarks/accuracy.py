"""Top-1 accuracy of trained models, float and INT8, by planish and by other tools on the same images."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.ours import planish_int8
from benchmarks.peers import TOOLS, export_float, peer_file
from benchmarks.tables import machine, show, write_json
from benchmarks.timing import Contestant, outputs_of, signal_to_noise_db
from benchmarks.zoo_cases import CASES, AccuracyCase, load_case

PEERS = ("ort-minmax", "ort-percentile", "ort-entropy", "nncf-onnx", "nncf-openvino")
CALIBRATION_BATCH, SCORING_BATCH = 16, 100


def contestants(case: AccuracyCase, with_planish: bool, folder: Path) -> list[Contestant]:
    """The float model first, then every tool's INT8 of it."""
    calibration = [(part,) for part in case.calibration.split(CALIBRATION_BATCH)]
    float_onnx = export_float(case.model, (case.inputs[:2],), ("image",), folder / "float.onnx")
    found = [Contestant("float", "onnxruntime", float_onnx)]
    for name in PEERS:
        path = peer_file(name, float_onnx, case.model, calibration, folder)
        found.append(Contestant(name, TOOLS[name].runtime, path))
    if with_planish:
        ours = planish_int8(case.model, (case.inputs[:2],), calibration, folder / "planish")
        found.append(Contestant("planish", "onnxruntime", ours))
    return found


def table_rows(name: str, case: AccuracyCase, compared: list[Contestant]) -> list[dict[str, Any]]:
    logits = {entry.name: outputs_of(entry, (case.inputs,), SCORING_BATCH) for entry in compared}
    reference = logits["float"]
    best_peer = max(case.top1(logits[peer]) for peer in PEERS)
    rows = []
    for contestant in compared:
        own = logits[contestant.name]
        rows.append(
            {
                "case": name,
                "tool": contestant.name,
                "top-1 %": case.top1(own),
                "minus float": case.top1(own) - case.top1(reference),
                "minus best peer": case.top1(own) - best_peer,
                "top-1 % not calibrated on": case.top1(own, case.overlap),
                "agrees with float %": 100 * float(np.mean(own.argmax(1) == reference.argmax(1))),
                "SNR dB": None if own is reference else signal_to_noise_db(reference, own),
                "images": len(own),
            }
        )
    return rows


def notes_on(name: str, case: AccuracyCase, measured_float: float) -> list[str]:
    share, count = measured_float / 100, len(case.labels)
    error = 100 * (share * (1 - share) / count) ** 0.5
    return [
        f"{name}: calibrated on {case.calibrated_on}. Recorded float accuracy {100 * case.recorded:.2f} %; "
        f"one standard error of {count} images is {error:.1f} points."
    ]


def main(
    cases: Annotated[list[str] | None, typer.Option(help="Names; all if left out.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
    without_planish: Annotated[bool, typer.Option("--without-planish", help="Only the peers.")] = False,
) -> None:
    unknown = set(cases or ()) - set(CASES)
    if unknown:
        raise typer.BadParameter(f"unknown cases {sorted(unknown)}; there are {list(CASES)}")
    rows: list[dict[str, Any]] = []
    notes = [machine()["cpu"]]
    for name in cases or CASES:
        case = load_case(name)
        with TemporaryDirectory() as folder:
            found = table_rows(name, case, contestants(case, not without_planish, Path(folder)))
        described = notes_on(name, case, found[0]["top-1 %"])
        show(f"{name}: accuracy", found, described)
        rows += found
        notes += described
        write_json(json, "accuracy", rows, notes)


if __name__ == "__main__":
    typer.run(main)
