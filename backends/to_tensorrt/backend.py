"""The TensorRT backend: lowers to ONNX as TensorRT fuses it. Engines are built where they run."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from planish.compiler.contracts import Backend, Check, FileFinding, Lowered, Runner
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program
from planish.compiler.report import DeviceReport, Latency
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.signature import Signature
from planish.compiler.verify import is_quantized

FILE = "model.onnx"
NOT_TENSORRT = (
    "Outputs were computed here by ONNX Runtime from the same model.onnx, Q/DQ in float: no test of TensorRT "
    "or of the device. Copy the artifact there and run build.py: it builds, verifies and measures."
)
OWN_ENGINE = "Outputs and times are those of the engine that TensorRT built on this machine."
FLOAT_WEIGHTS = (
    "TensorRT before version 10 quantizes the weights itself: model.onnx keeps them in float, the engine in INT8."
)
HALF = "TensorRT from version 11 on computes in the types of the file: floats are FP16 in it, inputs and outputs aside."
NOT_HALF = (
    "TensorRT from version 11 on computes in the types of the file: what is not INT8 runs in FP32 (TF32), not in FP16"
)


class TensorRtBackend(Backend):
    """``model.onnx`` with explicit Q/DQ, for the versions of TensorRT that the profile names."""

    name: ClassVar[str] = "tensorrt"

    def scheme(self, profile: HardwareProfile) -> QuantizationScheme | None:
        from planish.backends.to_tensorrt.scheme import scheme_for

        return scheme_for(profile)

    def checks(self, profile: HardwareProfile) -> tuple[Check, ...]:
        from planish.backends.to_tensorrt.checks import checks_for

        return checks_for(profile)

    def check_file(self, file: Path, profile: HardwareProfile) -> list[FileFinding]:
        from planish.backends.to_onnx.graph_rules import findings_in
        from planish.backends.to_tensorrt.rules import rules_of

        return findings_in(file, rules_of(profile))

    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        from planish.backends.to_onnx.exporter import lower_any
        from planish.backends.to_onnx.files import save
        from planish.backends.to_tensorrt.audit import demand_readable, float_layers
        from planish.backends.to_tensorrt.checks import opset_for
        from planish.backends.to_tensorrt.half import in_half
        from planish.backends.to_tensorrt.versions import oldest_version, suit

        opset, version = opset_for(profile), oldest_version(profile)
        model, note = lower_any(program, opset)
        suit(model, version)
        demand_readable(model, program, profile)
        halved = version >= (11, 0) and "fp16" in profile.support.dtypes
        why_not = in_half(model, _tensors(program.example_inputs.leaves())) if halved else None
        save(model, folder / FILE)
        own = self._own_report(program, profile, folder)
        decisions, notes = float_layers(model, folder / FILE, program, profile, own)
        notes.insert(0, OWN_ENGINE if own else NOT_TENSORRT)
        if version < (10, 0) and is_quantized(program):
            notes.append(FLOAT_WEIGHTS)
        if halved:
            notes.append(f"{NOT_HALF}: {why_not}." if why_not else HALF)
        # TF32, what the builder may choose where the file says FP32, rounds as FP16 does.
        rounds = own is not None or (halved and why_not is None)
        return Lowered(
            files=tuple(sorted(path.name for path in folder.iterdir())),
            decisions=tuple(decisions),
            notes=(note, *notes),
            versions={"opset": str(opset), **installed("onnx", "onnxruntime", "tensorrt-rtx", "tensorrt")},
            precision="float16" if rounds else "float32",
            on_device=(own,) if own else (),
        )

    def _own_report(self, program: Program, profile: HardwareProfile, folder: Path) -> DeviceReport | None:
        """What the engine is on this machine; None where it is not the device."""
        if self.cannot_time(profile):
            return None
        from planish.backends.to_tensorrt.engines import report_of

        return report_of(folder, profile, _tensors(program.example_inputs.leaves()))

    def cannot_run(self, profile: HardwareProfile) -> str | None:
        return None  # ONNX Runtime computes what the file says: Lowered.notes tell that this is no TensorRT

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        from planish.backends.to_tensorrt.this_machine import not_here

        return not_here(profile)

    def load(self, folder: Path, profile: HardwareProfile, signature: Signature, runtime: dict[str, Any]) -> Runner:
        from planish.backends.to_tensorrt.this_machine import not_here

        if not_here(profile):
            from planish.backends.to_onnx.reference import Reference

            return Reference(folder / FILE)
        from planish.backends.to_tensorrt.engines import EngineRunner

        return EngineRunner(folder, profile)

    def time(
        self, folders: Sequence[Path], profile: HardwareProfile, inputs: Sequence[Any], threads: int = 1
    ) -> list[Latency]:
        from planish.backends.to_tensorrt.engines import time_engines

        return time_engines(folders, profile, _tensors(inputs))

    def write_build_files(
        self, folder: Path, profile: HardwareProfile, inputs: Sequence[Any] | None = None
    ) -> tuple[str, ...]:
        from planish.backends.to_tensorrt import build_folder

        return build_folder.write(folder, profile, inputs)


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def installed(*packages: str) -> dict[str, str]:
    """Versions of those among ``packages`` that are there."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
