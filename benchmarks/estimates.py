"""Estimated against measured latency on this machine: trained nets, and nets of equal MACs that are deep or wide.

python -m benchmarks.estimates
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.tables import machine, show, write_json
from benchmarks.zoo_cases import load_case
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.local import local_profile
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.report import Latency
from planish.compiler.roofline import estimate_latency
from planish.compiler.trace import trace
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.quantize_int8 import QuantizeInt8

TRAINED = ("resnet44-cifar10", "resnet20-cifar10", "mobilenetv1-imagenet")
EQUAL_MACS = ((1, 128), (4, 64), (16, 32), (64, 16))
"""Layers and channels."""


def compare(
    rounds: Annotated[int, typer.Option(help="Timing runs; the one with the shortest times counts.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")] = None,
) -> None:
    """Print both latencies of each net, float and INT8, and what the estimate is of the measurement."""
    profile = local_profile()
    rows = []
    for name in TRAINED:
        case = load_case(name)
        rows += rows_of(name, case.model, case.calibration[:64], profile, rounds)
    for layers, channels in EQUAL_MACS:
        net = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers)))
        rows += rows_of(f"{layers} x {channels} channels", net, torch.randn(16, channels, 8, 8), profile, rounds)
    notes = [machine()["cpu"], *told(profile)]
    show("Latency, batch 1, one thread", rows, notes)
    write_json(json, "estimates", rows, notes)


def rows_of(name: str, model: nn.Module, x: Tensor, profile: HardwareProfile, rounds: int) -> list[dict[str, Any]]:
    programs = dict(both(model, x, profile))
    times = measured([*programs.values()], x[:1], profile, rounds)
    rows = []
    for (dtype, program), time in zip(programs.items(), times, strict=True):
        estimated = estimate_latency(program, profile).median_ms
        rows.append(
            {"net": name, "in": dtype, "measured ms": time, "estimated ms": estimated, "of it": estimated / time}
        )
    return rows


def both(model: nn.Module, x: Tensor, profile: HardwareProfile) -> Iterator[tuple[str, Program]]:
    scheme = registry().find_backend(profile.backend).scheme(profile)
    context = Context(profile, scheme, Calibration([Inputs((x,))], "given"))
    real = FoldBatchNorm().run(trace(model.eval(), Inputs((x[:2],))), context)
    yield "fp32", real
    yield "int8", QuantizeInt8().run(real, replace(context, decisions=[]))


def measured(programs: Sequence[Program], x: Tensor, profile: HardwareProfile, rounds: int) -> list[float]:
    backend = registry().find_backend(profile.backend)
    with TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(index) for index in range(len(programs))]
        for folder, program in zip(folders, programs, strict=True):
            folder.mkdir()
            backend.lower(program, profile, folder)
        runs: list[list[Latency]] = [backend.time(folders, profile, [x]) for _ in range(rounds)]
    return [min(latency.median_ms for latency in of) for of in zip(*runs, strict=True)]


def told(profile: HardwareProfile) -> Iterator[str]:
    rates = {dtype: figure.value for dtype, figure in profile.units[0].peak_gops.items()}
    yield f"local: {', '.join(f'{rate:.0f} GOP/s in {dtype}' for dtype, rate in rates.items())}"
    for what, table in (
        ("us a kernel", profile.kernel_overhead_us),
        ("channels at half rate", profile.half_rate_channels),
    ):
        yield ", ".join(f"{figure.value:.2g} {what} in {dtype}" for dtype, figure in table.items())


if __name__ == "__main__":
    typer.run(compare)
