"""A backend whose artifact is the Program itself, compressed; PyTorch runs it on the CPU."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import fx
from torch.utils import _pytree as pytree

from planish.compiler.archive import NAMESPACES
from planish.compiler.artifact import constant_outputs
from planish.compiler.contracts import Backend, Check, Lowered, Runner, run_checks
from planish.compiler.errors import LoweringError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.host import not_this_machine
from planish.compiler.program import Program, source_module
from planish.compiler.report import Latency
from planish.compiler.signature import Signature
from planish_example.timing import time_archives

FILE = "program.zip"


class TorchArchive(Backend):
    """Lowers to an archive of ``Program.save``, whose tensors are deflated."""

    name: ClassVar[str] = "torch-archive"

    def checks(self, profile: HardwareProfile) -> tuple[Check, ...]:
        sentence = f"an archive holds only operators of {', '.join(NAMESPACES)}"
        return (Check("archived-operators", sentence, _foreign_operators),)

    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        for finding in run_checks(program, self.checks(profile)):
            node = finding.node
            message = f"Replace the operator: {finding}"
            raise LoweringError(message, component=self.name, node=node.name, module=source_module(node))
        plain = program.fork().eval().save(folder / "plain.zip")
        _deflate(plain, folder / FILE)
        plain.unlink()
        return Lowered(files=(FILE,), versions={"torch": torch.__version__})

    def cannot_run(self, profile: HardwareProfile) -> str | None:
        return None  # PyTorch is wherever planish is, and computes the same on every CPU

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        return not_this_machine(profile)

    def load(self, folder: Path, profile: HardwareProfile, signature: Signature, runtime: dict[str, Any]) -> Runner:
        return ProgramRunner(Program.load(folder / FILE))

    def time(
        self, folders: Sequence[Path], profile: HardwareProfile, inputs: Sequence[Any], threads: int = 1
    ) -> list[Latency]:
        """Time in turns, each in a process of its own. ``inputs`` are the leaves of a call."""
        return time_archives([folder / FILE for folder in folders], inputs, threads)


class ProgramRunner(Runner):
    def __init__(self, program: Program) -> None:
        self.program = program
        self.signature = Signature.of(program.graph)
        self.constants = constant_outputs(program)

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        args, kwargs = pytree.tree_unflatten([*leaves], self.signature.inputs)
        with torch.no_grad():
            outputs = pytree.tree_leaves(self.program(*args, **kwargs))
        return [output for at, output in enumerate(outputs) if str(at) not in self.constants]


def _foreign_operators(program: Program) -> Iterable[fx.Node]:
    for node in program.calls():
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in NAMESPACES:
            yield node


def _deflate(source: Path, target: Path) -> None:
    """The same zip, compressed. Entries keep their fixed date, so the same Program gives the same bytes."""
    with zipfile.ZipFile(source) as plain, zipfile.ZipFile(target, "w") as deflated:
        for entry in plain.infolist():
            deflated.writestr(entry, plain.read(entry), zipfile.ZIP_DEFLATED)
