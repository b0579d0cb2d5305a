"""What NVIDIA's own parser and builder say of planish's files for TensorRT, without a GPU.

    python -m benchmarks.tensorrt_verdict                                  # the model families that users have
    python -m benchmarks.tensorrt_verdict resnet50 BERT --json out.json    # by name
    python -m benchmarks.tensorrt_verdict --kind further                   # one variant of every module of timm
    python -m benchmarks.tensorrt_verdict --versions ">=11.4,<12"          # as for TensorRT 11: floats in FP16
    python -m benchmarks.tensorrt_verdict --accuracy                       # trained models, Q/DQ in ONNX Runtime
    python -m benchmarks.tensorrt_verdict --roofline                       # ResNet-50 on each Jetson, estimated

One line a family: does the parser accept the float file, how many of its layers read FP32, how many layers were planned
in INT8, how many the builder runs so. Weights are random. TensorRT-RTX answers for its nearest architecture: no device
is tested. Exit code 1 if a layer runs in float and no rule of planish says why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from benchmarks.tables import show, write_json
from benchmarks.zoo_cases import CASES, load_case
from benchmarks.zoo_families import ZooFamily, zoo
from planish.backends.to_tensorrt import rtx
from planish.backends.to_tensorrt.audit import UNEXPLAINED
from planish.backends.to_tensorrt.backend import FILE, TensorRtBackend
from planish.backends.to_tensorrt.integers import LAYERS, meant_for_integers
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.errors import PlanishError, closest
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.roofline import estimate_latency
from planish.compiler.targets import find_profile
from planish.compiler.trace import trace
from planish.passes.erase_noops import EraseNoOps
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.quantize_int8 import QuantizeInt8

BACKEND = TensorRtBackend()


def row_of(family: ZooFamily, profile: HardwareProfile) -> dict[str, Any]:
    """One line of the table; what fails is told in its last column."""
    row: dict[str, Any] = {
        "family": family.name, "float": "", "in FP32": None, "planned INT8": None, "in INT8": None, "told": "",
    }  # fmt: skip
    torch.manual_seed(0)
    try:
        program = trace(family.build().eval(), family.inputs(2))
        calibration = Calibration([family.inputs(4)], "drawn")
        row |= _float(program, profile)
        quantized = _quantized(program, profile, calibration)
        row |= _int8(quantized, profile)
    except PlanishError as failure:
        row["told"] = str(failure).splitlines()[0]
    return row


def _quantized(program: Program, profile: HardwareProfile, calibration: Calibration) -> Program:
    context = Context(profile, BACKEND.scheme(profile), calibration)
    for step in (EraseNoOps(), FoldBatchNorm(), QuantizeInt8(calibrator="minmax")):
        program = step.run(program, context)
    return program


def _float(program: Program, profile: HardwareProfile) -> dict[str, Any]:
    """Accepted: yes, or what the parser or the builder says; how many layers that multiply read FP32."""
    import onnx_ir as ir

    with tempfile.TemporaryDirectory() as scratch:
        BACKEND.lower(program, profile, Path(scratch))
        verdict = rtx.ask(Path(scratch) / FILE, rtx.nearest_architecture(profile))
        products = {str(node.name) for node in ir.load(Path(scratch) / FILE).graph if node.op_type in LAYERS}
    if verdict.refusal:
        return {"float": f"{verdict.refused_node}: {verdict.refusal}"[:120]}
    multiply = [layer for layer in verdict.layers if products & {*layer.nodes} and layer.kind != "kgen"]
    return {"float": "yes", "in FP32": sum("Float" in layer.dtypes[:2] for layer in multiply)}


def _int8(program: Program, profile: HardwareProfile) -> dict[str, Any]:
    import onnx_ir as ir

    with tempfile.TemporaryDirectory() as scratch:
        lowered = BACKEND.lower(program, profile, Path(scratch))
        planned = len([*meant_for_integers(ir.load(Path(scratch) / FILE).graph)])
    in_float = len(lowered.decisions)
    reasons = sorted({decision.reason for decision in lowered.decisions})
    refused = [note for note in lowered.notes if "refuses" in note]
    told = "; ".join([*refused, *reasons])
    return {"planned INT8": planned, "in INT8": None if refused else planned - in_float, "told": told[:200]}


def accuracy_rows() -> Iterator[dict[str, Any]]:
    """Top-1 of each trained model in float, and as Q/DQ for a Jetson by ONNX Runtime."""
    import planish

    for name in CASES:
        case = load_case(name)
        calibration = [*case.calibration.split(16)]
        with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
            result = planish.compile(
                case.model, "jetson-orin", case.inputs[:2], calibration, output=Path(scratch) / "artifact",
                passes=[QuantizeInt8()],
            )  # fmt: skip
            parts = case.inputs.split(100)
            real = case.top1(torch.cat([case.model(part) for part in parts]).numpy())
            integers = case.top1(torch.cat([result.run(part) for part in parts]).numpy())
        yield {
            "case": name, "images": len(case.labels), "float top-1 %": real, "Q/DQ top-1 %": integers,
            "points": integers - real,
        }  # fmt: skip


RESULTS = "https://github.com/mlcommons/inference_results_{}/tree/main/closed/NVIDIA/results/{}/resnet50/SingleStream"
MLPERF = {
    "jetson-agx-orin-64": (0.636, "v3.1", "Orin_TRT"),
    "jetson-orin-nx-16": (1.078, "v3.1", "Orin_NX_TRT"),
    "jetson-agx-xavier": (1.817, "v1.1", "AGX_Xavier_TRT"),
    "jetson-xavier-nx": (2.434, "v2.0", "Xavier_NX_TRT"),
}
"""Target -> milliseconds of one image (INT8, the 50th percentile of performance/run_1), round and system, as NVIDIA
submitted them to MLPerf Inference. They include the driver of the benchmark; the estimates are of the kernels alone."""


def roofline_rows() -> Iterator[dict[str, Any]]:
    """ResNet-50 at 224x224 and batch 1, as the roofline has it, beside what was published."""
    family = next(family for family in zoo() if family.name == "resnet50")
    inputs = Inputs((torch.randn(2, 3, 224, 224),))
    model = family.build().eval()
    for weight in model.parameters():
        if not weight.any():  # timm starts the last batch norm of a block at 0: folded, that looks like 2:4 weights
            nn.init.ones_(weight)
    program, calibration = trace(model, inputs), Calibration([inputs], "drawn")
    profiles = registry().profiles
    jetsons = [profiles[name] for name in profiles if name.startswith("jetson") and profiles[name].quantization]
    integers = _quantized(program, jetsons[0], calibration)
    for profile in jetsons:
        estimates = [estimate_latency(each, profile) for each in (program, integers)]
        float_ms, int8_ms = (each.median_ms for each in estimates)
        published, version, system = MLPERF.get(profile.name, (None, "", ""))
        yield {
            "target": profile.name, "FP16 ms": float_ms, "INT8 ms": int8_ms, "FP16 / INT8": float_ms / int8_ms,
            "published INT8 ms": published, "published / estimated": published and published / int8_ms,
            "assumes": estimates[1].how, "source": RESULTS.format(version, system) if published else "",
        }  # fmt: skip


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Families; all of the kind if left out.")] = None,
    kind: Annotated[str, typer.Option(help="usual, further or all.")] = "usual",
    target: Annotated[str, typer.Option(help="Whose versions of TensorRT are served.")] = "jetson-orin",
    versions: Annotated[str, typer.Option(help="Of TensorRT, instead of those of the target.")] = "",
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Score trained models instead.")] = False,
    roofline: Annotated[bool, typer.Option("--roofline", help="Estimate ResNet-50 on each Jetson instead.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
) -> None:
    torch.set_num_threads(1)
    if accuracy or roofline:
        rows = [*(accuracy_rows() if accuracy else roofline_rows())]
        told = ["assumes", "source"]  # too long for a column: below the table
        table = [{name: value for name, value in row.items() if name not in told} for row in rows]
        show(
            "Q/DQ as for TensorRT, by ONNX Runtime" if accuracy else "ResNet-50, batch 1, estimated by roofline", table
        )
        for line in dict.fromkeys(f"{row['target']}: {row[name]}" for row in rows for name in told if row.get(name)):
            print(line)
        write_json(json, "tensorrt accuracy" if accuracy else "tensorrt roofline", rows)
        return
    families = {family.name: family for family in zoo()}
    for name in names or ():
        if name not in families:
            raise typer.BadParameter(f"there is no family {name!r}{closest(name, families)}")
    chosen = [families[name] for name in names] if names else [f for f in families.values() if kind in (f.kind, "all")]
    profile, rows = find_profile(target), []
    if versions:
        runtime = profile.runtime.model_copy(update={"versions": {"tensorrt": versions}})
        profile = profile.model_copy(update={"runtime": runtime})
    for family in chosen:
        rows.append(row_of(family, profile))
        print(*rows[-1].values(), sep=" | ", flush=True)
    show("TensorRT-RTX, nearest architecture (no device test)", rows)
    write_json(json, "tensorrt verdict", rows)
    if any(UNEXPLAINED in row["told"] for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
