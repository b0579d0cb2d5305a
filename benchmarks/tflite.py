"""TFLite files by planish and by Google's own tools: milliseconds, top-1, and what lowering costs.

    python -m benchmarks.tflite every FOLDER --peers /path/to/venv/bin/python    # all tables; again: what is missing
    python -m benchmarks.tflite latency --models resnet18 --peers …
    python -m benchmarks.tflite accuracy --cases resnet20-cifar10 --peers …
    python -m benchmarks.tflite lowering --peers …

``--peers`` is a Python with litert-torch, ai-edge-quantizer and torchao (pip install torch==2.13.0 litert-torch
ai-edge-quantizer torchao): they hold back packages that planish uses, and so live in an environment of their own.
"""

from __future__ import annotations

import json as json_module
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

import planish
from benchmarks.models import WORKLOADS, seeded_model
from benchmarks.tables import machine, show, write_json
from benchmarks.zoo_cases import CASES, load_case
from planish.backends.to_tflite.backend import TfliteBackend
from planish.backends.to_tflite.gate import WORKER
from planish.compiler.contracts import Pass
from planish.compiler.paired_timing import time_in_turns
from planish.compiler.verify import snr_db

PEERS_SCRIPT = Path(__file__).with_name("tflite_peers.py")
OURS = "planish"
VARIANTS: dict[str, tuple[list[Pass], TfliteBackend]] = {
    OURS: ([planish.FoldBatchNorm()], TfliteBackend()),
    "planish-fp16": ([planish.FoldBatchNorm()], TfliteBackend(weights="float16")),
    "planish-weights": ([planish.QuantizeWeights()], TfliteBackend()),
    "planish-dynamic": ([planish.QuantizeWeights(activations="dynamic")], TfliteBackend()),
    "planish-int8": ([planish.QuantizeInt8()], TfliteBackend(ends="int8")),  # as the peers' INT8 files have them
}
MODELS = ("resnet18", "mobilenetv2")
TARGET = "raspberry-pi-5"
IMAGES = 64
"""Calibration images: static quantizers run each of them."""

app = typer.Typer()
Peers = Annotated[Path | None, typer.Option(help="A Python with litert-torch and ai-edge-quantizer.")]
Json = Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")]


def make_files(model: nn.Module, images: Tensor, peers: Path | None, folder: Path) -> tuple[dict[str, Path], Any]:
    """Tool -> its file, each with channels last; and what the peers said of their runs."""
    files = {}
    for name, (passes, backend) in VARIANTS.items():
        result = planish.compile(
            model,
            TARGET,
            images[:1],
            calibration=images.split(16),
            passes=passes,
            output=folder / name,
            backend=backend,
        )
        files[name] = result.artifact.folder / "model.tflite"
    told: dict[str, Any] = {}
    if peers is not None:
        told = run_peers(model, images, peers, folder)
        files |= {tool: folder / f"{tool}.tflite" for tool, said in told.items() if "seconds" in said}
    return files, told


def run_peers(model: nn.Module, images: Tensor, peers: Path, folder: Path) -> Any:
    torch.export.save(torch.export.export(model, (images[:1],)), folder / "model.pt2")
    np.savez(folder / "calibration.npz", *[image.numpy() for image in images.split(1)])
    command = [str(peers), "-P", str(PEERS_SCRIPT), "model.pt2", "calibration.npz", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json_module.loads(done.stdout.strip().splitlines()[-1])


# ---------------------------------------------------------------------- running files


def opened(file: Path) -> Interpreter:
    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def fed(interpreter: Interpreter, image: Tensor) -> np.ndarray:
    """One image [1, C, H, W] as the file takes it: channels last, in integers where it has a scale."""
    (detail,) = interpreter.get_input_details()
    array = image.permute(0, 2, 3, 1).contiguous().numpy()
    if detail["dtype"] is np.float32:
        return array
    scale, zero = detail["quantization"]
    return np.clip(np.round(array / scale) + zero, -128, 127).astype(np.int8)


def outputs_of(file: Path, images: Tensor) -> np.ndarray:
    interpreter = opened(file)
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for image in images.split(1):
        interpreter.set_tensor(source["index"], fed(interpreter, image))
        interpreter.invoke()
        found.append(interpreter.get_tensor(result["index"]).astype(np.float32))
    outputs = np.concatenate(found)
    scale, zero = result["quantization"]
    return outputs if scale == 0 else (outputs - zero) * scale


def milliseconds(files: Sequence[Path], image: Tensor, threads: int) -> list[float]:
    def commands(arrays: Path) -> dict[Path, list[str]]:
        made = {}
        for place, file in enumerate(files):
            own = arrays.with_name(f"{place}.npz")
            np.savez(own, fed(opened(file), image))
            made[file] = [sys.executable, "-P", str(WORKER), str(file), str(own), str(threads)]
        return made

    return [latency.median_ms for latency in time_in_turns(commands, {"image": image}, threads, "LiteRT")]


# ---------------------------------------------------------------------- tables


@app.command()
def latency(peers: Peers = None, json: Json = None, threads: int = 1, models: str = ",".join(MODELS)) -> None:
    """Milliseconds of one image, all files of a model in turns, and the signal-to-noise ratio against PyTorch."""
    rows: list[dict[str, Any]] = []
    notes = [machine()["cpu"], f"{threads} threads, XNNPACK; seeded random weights, {IMAGES} calibration images"]
    for name in models.split(","):
        model, images = seeded_model(WORKLOADS[name]), WORKLOADS[name].draw(IMAGES, 2)[0]
        probe = WORKLOADS[name].draw(4, 3)[0]
        with torch.no_grad():
            wanted = model(probe)
        with TemporaryDirectory() as folder:
            files, told = make_files(model, images, peers, Path(folder))
            times = milliseconds([*files.values()], probe[:1], threads)
            for (tool, file), ms in zip(files.items(), times, strict=True):
                got = torch.from_numpy(outputs_of(file, probe))
                size = file.stat().st_size / 1e6
                rows.append({"model": name, "tool": tool, "ms": ms, "MB": size, "SNR dB": snr_db(wanted, got)})
        notes += failures(name, told)
    show("TFLite: latency", rows, notes)
    write_json(json, "tflite-latency", rows, notes)


def failures(name: str, told: dict[str, Any]) -> list[str]:
    return [f"{name}: {tool} failed: {said['failure']}" for tool, said in told.items() if "failure" in said]


@app.command()
def accuracy(peers: Peers = None, json: Json = None, cases: str = ",".join(CASES), images: int = 5000) -> None:
    """Top-1 of trained models and sizes of the files, float and quantized, on the same images.

    ``lost``: images that our float file has right and this one not; ``won``: the other way round. What differs by
    fewer images than about the root of their sum is chance; the signal-to-noise ratio tells more.
    """
    rows: list[dict[str, Any]] = []
    notes = [machine()["cpu"]]
    for name in cases.split(","):
        case = load_case(name)
        start = case.overlap if len(case.inputs) - case.overlap >= images else 0
        inputs, labels = case.inputs[start : start + images], case.labels[start : start + images].numpy()
        with TemporaryDirectory() as folder:
            files, told = make_files(case.model, case.calibration[:IMAGES], peers, Path(folder))
            logits = {tool: outputs_of(file, inputs) for tool, file in files.items()}
            sizes = {tool: file.stat().st_size / 1e6 for tool, file in files.items()}
        right = logits[OURS].argmax(1) == labels
        for tool, own in logits.items():
            same = 100 * float((own.argmax(1) == logits[OURS].argmax(1)).mean())
            hits = own.argmax(1) == labels
            noise = snr_db(torch.from_numpy(logits[OURS]), torch.from_numpy(own))
            rows.append(
                {
                    "case": name, "tool": tool, "MB": sizes[tool], "top-1 %": 100 * float(hits.mean()),
                    "lost": int((right & ~hits).sum()), "won": int((hits & ~right).sum()),
                    "agrees with float %": same, "SNR dB": noise,
                }
            )  # fmt: skip
        notes += [f"{name}: {len(labels)} images; calibrated on {IMAGES} of {case.calibrated_on}"]
        notes += failures(name, told)
    show("TFLite: accuracy", rows, notes)
    write_json(json, "tflite-accuracy", rows, notes)


@app.command()
def lowering(peers: Peers = None, json: Json = None, model: str = "resnet50") -> None:
    """Seconds and peak memory of writing the float file."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.tflite_lowering_worker", model, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ours = json_module.loads(done.stdout.strip().splitlines()[-1])
        rows.append({"model": model, "tool": OURS, "seconds": ours["seconds"], "peak MiB": ours["peak_mib"]})
        if peers is not None:
            workload = WORKLOADS[model]
            told = run_peers(seeded_model(workload), workload.draw(1, 2)[0], peers, Path(folder))
            theirs = told["litert-torch"]
            rows.append(
                {
                    "model": model,
                    "tool": "litert-torch",
                    "seconds": theirs.get("seconds"),
                    "peak MiB": theirs.get("peak_mib"),
                }
            )
    notes = [machine()["cpu"], "imports are not counted in the seconds; the peak is that of the whole process"]
    show("TFLite: lowering", rows, notes)
    write_json(json, "tflite-lowering", rows, notes)


@app.command()
def every(folder: Path, peers: Peers = None) -> None:
    """All tables, each in a process and a JSON file of its own; those that are there already are not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {f"accuracy-{case}": ["accuracy", "--cases", case] for case in CASES}
    parts |= {f"latency-{model}": ["latency", "--models", model] for model in MODELS}
    for name, arguments in (parts | {"lowering": ["lowering"]}).items():
        file = folder / f"{name}.json"
        if not file.exists():
            chosen = [] if peers is None else ["--peers", str(peers)]
            command = [sys.executable, "-m", "benchmarks.tflite", *arguments, "--json", str(file), *chosen]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    app()
