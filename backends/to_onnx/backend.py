"""The ONNX backend: lowers by rules, runs with ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from planish.compiler.contracts import Backend, Check, Lowered, Runner
from planish.compiler.errors import MissingDependency
from planish.compiler.hardware import HardwareProfile
from planish.compiler.host import not_this_machine
from planish.compiler.program import Program
from planish.compiler.report import Latency
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.signature import Signature
from planish.compiler.verify import is_quantized

FILE = "model.onnx"
OPSET = 20
"""Has Gelu; runtimes from 2024 on read it. A profile's ``runtime.opset`` lowers it."""


class OnnxBackend(Backend):
    """``model.onnx`` for ONNX Runtime, and for what else reads ONNX."""

    name: ClassVar[str] = "onnx"

    def scheme(self, profile: HardwareProfile) -> QuantizationScheme | None:
        from planish.backends.to_onnx.scheme import scheme_for

        return scheme_for(profile)

    def checks(self, profile: HardwareProfile) -> tuple[Check, ...]:
        from planish.backends.to_onnx.checks import checks_for

        return checks_for(profile)

    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        _require()
        import onnxruntime

        from planish.backends.to_onnx.audit import float_fallbacks
        from planish.backends.to_onnx.exporter import lower_any
        from planish.backends.to_onnx.files import save

        opset = min(OPSET, profile.runtime.opset or OPSET)
        model, note = lower_any(program, opset)
        save(model, folder / FILE)
        fallbacks, notes = float_fallbacks(folder / FILE, program) if is_quantized(program) else ([], [])
        return Lowered(
            files=tuple(sorted(path.name for path in folder.iterdir())),
            decisions=tuple(fallbacks),
            notes=tuple([note, *notes] if note else notes),
            versions={"onnxruntime": onnxruntime.__version__, "opset": str(opset)},
        )

    def cannot_run(self, profile: HardwareProfile) -> str | None:
        return None if importlib.util.find_spec("onnxruntime") else "onnxruntime is not installed"

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        return self.cannot_run(profile) or not_this_machine(profile)

    def load(self, folder: Path, profile: HardwareProfile, signature: Signature, runtime: dict[str, Any]) -> Runner:
        _require()
        return _Session(folder / FILE)

    def time(
        self, folders: Sequence[Path], profile: HardwareProfile, inputs: Sequence[Any], threads: int = 1
    ) -> list[Latency]:
        _require()
        from planish.backends.to_onnx.timing import time_files

        return time_files([folder / FILE for folder in folders], _tensors(inputs), threads)


class _Session(Runner):
    """ONNX Runtime's session, all cores; tensors are handed over without a copy."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs()]

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        feed = {name: tensor.numpy(force=True) for name, tensor in zip(self._names, _tensors(leaves), strict=True)}
        return [torch.from_numpy(array) for array in self._session.run(None, feed)]


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]


def _require() -> None:
    for library in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(library) is None:
            raise MissingDependency(library, "onnx")
