"""The ONNX backend: lowers by rules, runs with ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from planish.compiler.contracts import Backend, Check, FileFinding, Lowered, Runner
from planish.compiler.errors import MissingDependency
from planish.compiler.hardware import HardwareProfile
from planish.compiler.host import not_this_machine
from planish.compiler.program import Program
from planish.compiler.report import Latency
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.signature import Signature
from planish.compiler.verify import is_quantized

FILE = "model.onnx"


class OnnxBackend(Backend):
    """``model.onnx`` for ONNX Runtime, and for what else reads ONNX."""

    name: ClassVar[str] = "onnx"

    def scheme(self, profile: HardwareProfile) -> QuantizationScheme | None:
        from planish.backends.to_onnx.providers import providers_of
        from planish.backends.to_onnx.scheme import scheme_for

        scheme = scheme_for(profile)
        return None if scheme is None else providers_of(profile)[0].scheme(scheme, profile)

    def checks(self, profile: HardwareProfile) -> tuple[Check, ...]:
        from planish.backends.to_onnx.checks import checks_for

        return checks_for(profile)

    def check_file(self, file: Path, profile: HardwareProfile) -> list[FileFinding]:
        _require()
        from planish.backends.to_onnx.graph_rules import findings_in
        from planish.backends.to_onnx.providers import rules_for

        rules = rules_for(profile)
        return findings_in(file, rules) if rules else super().check_file(file, profile)

    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        _require()
        import onnxruntime

        from planish.backends.to_onnx.audit import float_fallbacks
        from planish.backends.to_onnx.files import save
        from planish.backends.to_onnx.lowered import lowered_for, opset_for
        from planish.backends.to_onnx.providers import CPU, providers_of

        model, note = lowered_for(program, profile)
        save(model, folder / FILE)
        on_cpu = providers_of(profile) == (CPU,)
        fallbacks, notes = float_fallbacks(folder / FILE, program) if on_cpu and is_quantized(program) else ([], [])
        return Lowered(
            files=tuple(sorted(path.name for path in folder.iterdir())),
            decisions=tuple(fallbacks),
            notes=tuple([note, *notes] if note else notes),
            versions={"onnxruntime": onnxruntime.__version__, "opset": str(opset_for(profile))},
        )

    def cannot_run(self, profile: HardwareProfile) -> str | None:
        return None if importlib.util.find_spec("onnxruntime") else "onnxruntime is not installed"

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        return self.cannot_run(profile) or not_this_machine(profile)

    def load(self, folder: Path, profile: HardwareProfile, signature: Signature, runtime: dict[str, Any]) -> Runner:
        _require()
        from planish.backends.to_onnx.reference import Session

        return Session(folder / FILE)

    def time(
        self, folders: Sequence[Path], profile: HardwareProfile, inputs: Sequence[Any], threads: int = 1
    ) -> list[Latency]:
        _require()
        from planish.backends.to_onnx.timing import time_files

        return time_files([folder / FILE for folder in folders], _tensors(inputs), threads)

    def write_build_files(
        self, folder: Path, profile: HardwareProfile, inputs: Sequence[Any] | None = None
    ) -> tuple[str, ...]:
        _require()
        from planish.backends.to_onnx import build_folder

        return build_folder.write(folder, profile, None if inputs is None else _tensors(inputs))


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]


def _require() -> None:
    for library in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(library) is None:
            raise MissingDependency(library, "onnx")
