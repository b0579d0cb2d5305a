"""A backend and passes whose figures the tests write themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Backend, Budget, Context, Lowered, Pass, Runner, Stage
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.judge import Judge
from planish.compiler.plugins import registry
from planish.compiler.program import Program, add_tensor
from planish.compiler.report import Latency
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.signature import Signature

FILE = "model.bin"


def vnni() -> HardwareProfile:
    return registry().find_profile("x86-avx512-vnni")


def parameters_of(program: Program) -> int:
    return sum(parameter.numel() for parameter in program.parameters())


@dataclass
class FakeBackend(Backend):
    """Writes a file of ``bytes_of(program)`` bytes; the latencies of a timing run come from ``latency_of``."""

    name: ClassVar[str] = "fake"
    latency_of: Callable[[Program], float] = lambda program: 1.0
    bytes_of: Callable[[Program], int] = lambda program: 1000
    runs: bool = True
    timed: bool = True
    damage: float = 0.0
    """Added to every output of what was lowered."""
    quantizes: bool = False
    failure: Exception | None = None
    programs: dict[Path, Program] = field(default_factory=dict)
    timings: list[int] = field(default_factory=list)
    """How many files each timing run had."""

    def scheme(self, profile: HardwareProfile) -> QuantizationScheme | None:
        return registry().find_backend("onnx").scheme(profile) if self.quantizes else None

    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        if self.failure:
            raise self.failure
        (folder / FILE).write_bytes(bytes(self.bytes_of(program)))
        self.programs[folder] = program
        return Lowered(files=(FILE,))

    def cannot_run(self, profile: HardwareProfile) -> str | None:
        return None if self.runs else "no such device here"

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        return None if self.timed else "this machine is no such device"

    def load(self, folder: Path, profile: HardwareProfile, signature: Signature, runtime: dict[str, Any]) -> Runner:
        return FakeRunner(self.programs[folder], self.damage)

    def time(
        self, folders: Sequence[Path], profile: HardwareProfile, inputs: Sequence[Any], threads: int = 1
    ) -> list[Latency]:
        self.timings.append(len(folders))
        return [
            Latency(median_ms=self.latency_of(self.programs[folder]), batch=1, source="measured", how="scripted")
            for folder in folders
        ]


class FakeRunner(Runner):
    def __init__(self, program: Program, damage: float) -> None:
        self.program, self.damage = program, damage

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        call = torch.utils._pytree.tree_unflatten([*leaves], Signature.of(self.program.graph).inputs)
        with torch.no_grad():
            outputs = torch.utils._pytree.tree_leaves(self.program(*call[0], **call[1]))
        return [leaf + self.damage for leaf in outputs if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the first parameter: not exact, and easy to see in every output."""

    name: ClassVar[str] = "scale"
    stage: ClassVar[Stage] = Stage.STRUCTURE
    factor: float = 0.999

    def run(self, program: Program, context: Context) -> Program:
        program = program.fork()
        node = next(node for node in program.graph.nodes if program.tensor(node) is not None)
        tensor = program.tensor(node)
        assert tensor is not None
        node.replace_all_uses_with(
            add_tensor(program, f"{node.target}_scaled", torch.nn.Parameter(tensor.detach() * self.factor))
        )
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
        return program


@dataclass(frozen=True)
class Keep(Scale):
    """A pass of another name, so that two can stand in one plan."""

    name: ClassVar[str] = "keep"


def scaled(program: Program) -> int:
    """How many times a Scale pass has run on ``program``."""
    return sum(str(node.target).count("_scaled") for node in program.graph.nodes if node.op == "get_attr")


def judge_of(backend: Backend, program: Program, scratch: Path, **options: Any) -> Judge:
    inputs = program.example_inputs
    budget = options.get("budget") or Budget()
    metric = options.get("metric")
    return Judge(backend, vnni(), budget, metric, [*inputs.split(1)], scratch)


def context_of(program: Program) -> Context:
    return Context(vnni(), None, Calibration([program.example_inputs], "the example inputs"))


def inputs_of(*tensors: Tensor) -> Inputs:
    return Inputs(tensors)
