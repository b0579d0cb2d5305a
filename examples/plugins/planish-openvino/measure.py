"""Measures the figures of README.md: one thread, batch 1, OpenVINO and ONNX Runtime in turns.

From the root of planish, with both packages installed: python examples/plugins/planish-openvino/measure.py [NETWORK …]
The trained networks of ../shared/data are left out where that folder is missing.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from planish_openvino.backend import OpenVinoBackend
from torch import Tensor, nn

from planish.compiler.calibration import InputForm, from_data
from planish.compiler.contracts import Backend, Context
from planish.compiler.host import cpu_name
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.targets import find_profile
from planish.compiler.trace import trace_with_notes

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT.parent / "shared" / "data")]

from benchmarks import models as benchmarked  # noqa: E402

aten = torch.ops.aten
PROFILE = find_profile("x86-avx512-vnni")
OURS, ONNX = OpenVinoBackend(), registry().find_backend("onnx")
TURNS = 3

Network = tuple[nn.Module, tuple[Tensor, ...]]


def main() -> None:
    torch.set_num_threads(1)
    print(f"{cpu_name()}, 1 thread, batch 1, median of {TURNS} turns\n")
    speeds, ratios = [LATENCY_HEAD], []
    for name, build in networks().items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        print(name, file=sys.stderr)
        model, inputs = build()
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            case = Case(model, inputs, Path(folder))
            speeds.append(f"| {name} | {case.speeds()} |")
            ratios.append((name, case.scheme_ratios()))
    print("\n".join(speeds), "\n")
    names = [*ratios[0][1]]
    print("\n".join([f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]))
    for name, row in ratios:
        print(f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in row.values())} |")


LATENCY_HEAD = "\n".join(
    (
        "| | OpenVINO INT8, ms | OpenVINO float, ms | ONNX Runtime INT8, ms | INT8: OpenVINO / ONNX Runtime |",
        "| --- | --- | --- | --- | --- |",
    )
)


def networks() -> dict[str, Callable[[], Network]]:
    """Name -> function that gives the model and eight rows of inputs."""
    found: dict[str, Callable[[], Network]] = {
        "resnet18": lambda: (benchmarked.seeded_model(benchmarked.WORKLOADS["resnet18"]), benchmarked.images(8, 1)),
        "mobilenetv2": lambda: (
            benchmarked.seeded_model(benchmarked.WORKLOADS["mobilenetv2"]),
            benchmarked.images(8, 1),
        ),
        "resnet18-silu": resnet18_silu,
        "bert-layer": lambda: (bert_layer(), benchmarked.token_ids(8, 1)),
    }
    if (ROOT.parent / "shared" / "data" / "zoo.py").is_file():
        found |= {name: partial(trained, name) for name in ("resnet20-cifar10", "mobilenetv1-imagenet")}
    return found


def trained(name: str) -> Network:
    case = importlib.import_module("zoo").load_real(name)
    return case.model, (case.inputs[:8],)


def resnet18_silu() -> Network:
    """SiLU for ReLU inside the blocks; the sums keep theirs."""
    return with_silu(benchmarked.seeded_model(benchmarked.WORKLOADS["resnet18"])), benchmarked.images(8, 1)


def with_silu(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return model


def bert_layer() -> nn.Module:
    benchmarked.tolerate_mismatched_torchvision()
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    encoder = BertModel(BertConfig(num_hidden_layers=1), add_pooling_layer=False)
    return benchmarked.HiddenStates(encoder).eval()


class Case:
    """One network, its Program quantized and lowered in several ways."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> None:
        self.folder = folder
        self.leaves = [tensor[:1] for tensor in inputs]
        self.program = trace_with_notes(model, Inputs(inputs)).program
        self.calibration = from_data([inputs], InputForm.of_module(model), self.program)

    def speeds(self) -> str:
        ours = [self.lowered(OURS, self.quantized(OURS.scheme(PROFILE))), self.lowered(OURS, self.folded())]
        theirs = [self.lowered(ONNX, self.quantized(ONNX.scheme(PROFILE)))]
        turns = np.array([[*self.times(OURS, ours), *self.times(ONNX, theirs)] for _ in range(TURNS)])
        int8, float32, ort = np.median(turns, 0)
        return f"{int8:.3g} | {float32:.3g} | {ort:.3g} | {np.median(turns[:, 0] / turns[:, 2]):.2f}"

    def scheme_ratios(self) -> dict[str, float]:
        """Time of each other scheme over the time of ours."""
        known = schemes()
        folders = [self.lowered(OURS, self.quantized(scheme)) for scheme in known.values()]
        turns = np.array([self.times(OURS, folders) for _ in range(TURNS)])
        ratios = np.median(turns / turns[:, :1], 0)
        return dict(zip([*known][1:], map(float, ratios[1:]), strict=True))

    def folded(self) -> Program:
        program, context = self.program, Context(PROFILE, None, self.calibration)
        for name in ("erase-no-ops", "fold-batch-norm"):
            program = registry().find_pass(name)().run(program, context)
        return program

    def quantized(self, scheme: QuantizationScheme | None) -> Program:
        """By the quickest calibrator: times do not depend on it."""
        quantize = registry().find_pass("quantize-int8").from_options({"calibrator": "minmax"})
        return quantize.run(self.folded(), Context(PROFILE, scheme, self.calibration))

    def lowered(self, backend: Backend, program: Program) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        backend.lower(program, PROFILE, folder)
        return folder

    def times(self, backend: Backend, folders: list[Path]) -> list[float]:
        return [latency.median_ms for latency in backend.time(folders, PROFILE, self.leaves)]


def schemes() -> dict[str, QuantizationScheme]:
    """Ours first, then those that differ in one thing."""
    ours, theirs = OURS.scheme(PROFILE), ONNX.scheme(PROFILE)
    assert ours is not None and theirs is not None

    def without(operator: object) -> QuantizationScheme:
        return replace(ours, ops=tuple(op for op in ours.ops if operator not in op.operators))

    written = tuple(
        replace(op, quantizes_output=True) if aten.linear.default in op.operators else op for op in ours.ops
    )
    return {
        "ours": ours,
        "float prefix": replace(ours, prefix=theirs.prefix),
        "only ReLU and clips fused": replace(ours, ops=theirs.ops),
        "linear writes integers": replace(ours, ops=written),
        "linear in float": without(aten.linear.default),
        "sum in float": without(aten.add.Tensor),
        "mean in float": without(aten.mean.dim),
    }


if __name__ == "__main__":
    main()
