"""Core ML packages by planish and by plain ``coremltools.convert``: errors, sizes, and what lowering costs.

    python -m benchmarks.coreml errors
    python -m benchmarks.coreml sizes
    python -m benchmarks.coreml lowering

Every figure is of the saved package, evaluated by planish's reference evaluator: none was measured on Apple's devices.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import coremltools as ct
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

import planish
from benchmarks.models import WORKLOADS, seeded_model
from benchmarks.tables import show, write_json
from planish.backends.to_coreml.backend import FILE, CoreMLBackend
from planish.backends.to_coreml.compress import FORMS, JOINT_SINCE, SPARSE_SINCE
from planish.backends.to_coreml.convert import quiet
from planish.backends.to_coreml.evaluator import Evaluator
from planish.backends.to_coreml.runner import PackageRunner
from planish.backends.to_coreml.scheme import ACTIVATIONS_SINCE
from planish.backends.to_coreml.targets import OLDEST
from planish.compiler.errors import VerificationError

TARGET = "iphone-15"
SIZED, LOWERED = "resnet18", "resnet50"

app = typer.Typer()
Json = Annotated[Path | None, typer.Option(help="Write the figures to this file as well.")]


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def cases() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 16)
    spiky = torch.cat([x[..., :15], torch.full((2, 8, 1), 1e3)], -1)
    grouped = nn.Sequential(nn.ConvTranspose2d(8, 12, 2, groups=4), nn.BatchNorm2d(12))
    nn.init.uniform_(grouped[1].weight, 0.5, 2.0)  # type: ignore[arg-type]
    kernel = torch.randn(8, 8, 1, 1)
    weight, bias = torch.rand(1, 8, 1, 1) + 0.5, torch.rand(1, 8, 1, 1)
    functions: dict[str, tuple[Callable[[Tensor], Tensor] | nn.Module, Tensor]] = {
        "sub with alpha": (lambda x: torch.sub(x, x.flip(-1), alpha=5), x),
        "gelu, tanh form": (nn.GELU(approximate="tanh"), 3 * x),
        "x * w + b": (lambda x: x[..., None] * weight + bias, x),
        "bilinear resize to a size": (lambda x: F.interpolate(x[:, None], (11, 21), mode="bilinear"), x),
        "rms_norm of spikes": (nn.RMSNorm(16, eps=1e-2), spiky),
        "reciprocal": (lambda x: (x.abs() * 0.1 + 0.01).reciprocal(), x),
        "triu of infinities": (lambda x: x @ x.mT + torch.full((8, 8), -torch.inf).triu(1), x),
        "where with a mask of the batch": (
            lambda x: torch.where(x[:, :1] > 0, torch.ones(1, 8, 16), torch.zeros(1, 8, 16)), x),
        "grouped-query attention": (
            lambda x: F.scaled_dot_product_attention(x.view(-1, 4, 2, 16), x[:, :4].view(-1, 2, 2, 16),
                                                     x[:, 4:].view(-1, 2, 2, 16), enable_gqa=True), x),
        "batch norm, transposed convolution in groups": (
            nn.Sequential(nn.Unflatten(2, (4, 4)), grouped), x),
        "weights / convolution": (lambda x: weight / F.conv2d(x[..., None], kernel), x),
        "whole division of large numbers": (
            lambda x: (((x * 1e6).to(torch.int32) * 256) // 3 % 4).float(), x),
    }  # fmt: skip
    return {
        name: (function if isinstance(function, nn.Module) else Function(function), inputs)
        for name, (function, inputs) in functions.items()
    }


def naive_error(model: nn.Module, x: Tensor) -> float | str:
    try:
        with TemporaryDirectory() as scratch:
            path = Path(scratch) / "naive.mlpackage"
            naive(model, x, ct.precision.FLOAT32).save(str(path))
            evaluator = Evaluator(path)
            (got,) = evaluator(dict.fromkeys(evaluator.package.inputs, x)).values()
    except VerificationError:
        return "contradicts its own shapes"
    except Exception as failure:  # whatever the converter raises
        return f"fails: {str(failure).strip().splitlines()[0][:60]}"
    return relative(model(x), got)


def naive(model: nn.Module, x: Tensor, precision: Any) -> Any:
    """As the documentation has it, with a bounded dynamic batch."""
    batch = torch.export.Dim("batch", min=1, max=32)
    with quiet():
        exported = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: batch},)).run_decompositions({})
        return ct.convert(
            exported, minimum_deployment_target=ct.target.iOS18, compute_precision=precision, skip_model_load=True
        )


def relative(wanted: Tensor, got: Tensor) -> float:
    wanted, got = wanted.detach().double(), got.double()
    difference = torch.where(wanted == got, 0.0, (wanted - got).abs()).nan_to_num(torch.inf)
    return float(difference.max() / wanted[wanted.isfinite()].abs().max())


@app.command()
def errors(json: Json = None) -> None:
    """The largest error of each package in float32, relative to the largest value."""
    rows = []
    for name, (model, x) in cases().items():
        ours = planish.compile(model.eval(), TARGET, x, passes=[], backend=CoreMLBackend("float32"))
        with torch.no_grad():
            rows.append(
                {"model": name, "ct.convert": naive_error(model, x), "planish": relative(model(x), ours.run(x))}
            )
    show("Largest relative error of the saved package, float32", rows)
    write_json(json, "coreml errors", rows)


@app.command()
def sizes(json: Json = None) -> None:
    """Megabytes of a network's package, and its SNR against the float model on drawn inputs."""
    model, half_zero = (seeded_model(WORKLOADS[SIZED]) for _ in range(2))
    (x,) = WORKLOADS[SIZED].draw(2, 1)
    for layer in half_zero.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight[0].numel() % 4 == 0:
            pairs = layer.weight.data.reshape(-1, 4)
            pairs.scatter_(1, pairs.abs().argsort(1)[:, :2], 0.0)
    int8: dict[str, Any] = {"passes": [planish.QuantizeInt8()]}
    runs: list[tuple[str, int, nn.Module, dict[str, Any]]] = [
        ("float32", OLDEST, model, {"backend": CoreMLBackend("float32")}),
        ("float16", OLDEST, model, {}),
        ("INT8, activations too", ACTIVATIONS_SINCE, model, int8),
        ("INT8 weights (the pass)", ACTIVATIONS_SINCE, model, {"passes": [planish.QuantizeWeights()]}),
        *((f"weights={form!r}", FORMS[form].since, model, {"backend": CoreMLBackend(weights=form)}) for form in FORMS),
        ("2:4 zeros", SPARSE_SINCE, half_zero, {}),
        ("2:4 zeros, INT8", JOINT_SINCE, half_zero, int8),
    ]
    rows = []
    for name, since, network, options in runs:
        result = planish.compile(network, TARGET, x, **options)
        package = result.artifact.folder / FILE
        size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file()) / 1e6
        found = [error.snr_db for error in result.report.errors]
        rows.append({"form": name, "iOS": since, "macOS": since - 3, "MB": size, "dB against its Program": found[0]})
    show(f"{SIZED}: the package", rows)
    write_json(json, "coreml sizes", rows)


@app.command()
def lowering(json: Json = None) -> None:
    """CPU seconds and peak memory of one conversion to float16, each in a process of its own."""
    rows = []
    for name in ("ct.convert", "planish"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.coreml", "one", name], capture_output=True, text=True, check=True
        )
        before, after, seconds, proof = map(float, done.stdout.split()[-4:])
        rows.append(
            {"tool": name, "CPU s": seconds, "of it the proof": proof, "peak MiB": after, "MiB before it": before}
        )
    show(f"{LOWERED}: lowering to float16", rows)
    write_json(json, "coreml lowering", rows)


@app.command(hidden=True)
def one(tool: str) -> None:
    """One conversion in this process: MiB before, MiB at the peak, CPU seconds, CPU seconds of the proof in it."""
    from planish.compiler.inputs import Inputs
    from planish.compiler.plugins import registry
    from planish.compiler.trace import trace

    torch.set_num_threads(1)
    model, (x,) = WORKLOADS[LOWERED].build().eval(), WORKLOADS[LOWERED].draw(2, 1)
    program, profile = trace(model, Inputs((x,))), registry().find_profile(TARGET)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with TemporaryDirectory() as scratch:
        start, proof = time.process_time(), 0.0
        if tool == "planish":
            lowered = CoreMLBackend().lower(program, profile, Path(scratch))
        else:
            naive(model, x, ct.precision.FLOAT16).save(f"{scratch}/naive.mlpackage")
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if tool == "planish":
            start = time.process_time()
            PackageRunner(Path(scratch) / FILE, lowered.runtime)([x[:1]])  # as lowering has done once
            proof = time.process_time() - start
    print(before, peak, seconds, proof)


if __name__ == "__main__":
    app()
