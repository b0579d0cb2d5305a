"""The OpenVINO backend: lowers with planish's ONNX backend, runs with OpenVINO on the CPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from planish.compiler.contracts import Backend, Check, Lowered, Runner
from planish.compiler.errors import LoweringError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.host import not_this_machine
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.report import Latency
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.signature import Signature
from planish_openvino.runtime import CONFIG, CompiledRunner, compiled, is_installed, require
from planish_openvino.scheme import on_x86

FILE = "model.onnx"
RUNTIME = Path(__file__).with_name("on_device") / "runtime.py"


class OpenVinoBackend(Backend):
    """``model.onnx`` for OpenVINO, quantized as OpenVINO runs it best."""

    name: ClassVar[str] = "openvino"

    def scheme(self, profile: HardwareProfile) -> QuantizationScheme | None:
        scheme = _onnx().scheme(profile)
        is_x86 = profile.host is not None and profile.host.machine == "x86_64"
        return on_x86(scheme) if scheme is not None and is_x86 else scheme

    def checks(self, profile: HardwareProfile) -> tuple[Check, ...]:
        return _onnx().checks(profile)

    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        """As the ONNX backend does; then OpenVINO compiles the file, and is asked what it made of it."""
        require()
        import openvino

        from planish_openvino.audit import float_fallbacks

        lowered = _onnx().lower(program, profile, folder)
        scheme = self.scheme(profile)
        try:
            model = compiled(folder / FILE, [tensor.shape for tensor in _tensors(program.example_inputs.leaves())])
        except RuntimeError as failure:
            why = str(failure).strip().splitlines()[-1]
            raise LoweringError(f"OpenVINO cannot compile {FILE}: {why}", component=self.name) from failure
        fallbacks, notes = float_fallbacks(model, program, scheme) if scheme else ([], [])
        return replace(
            lowered,
            decisions=tuple(fallbacks),
            notes=(*_of_the_file(lowered.notes), *notes),
            versions={**lowered.versions, "openvino": openvino.__version__},
        )

    def cannot_run(self, profile: HardwareProfile) -> str | None:
        return None if is_installed() else "openvino is not installed (pip install planish-openvino brings it)"

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        return self.cannot_run(profile) or not_this_machine(profile)

    def load(self, folder: Path, profile: HardwareProfile, signature: Signature, runtime: dict[str, Any]) -> Runner:
        require()
        return CompiledRunner(folder / FILE)

    def time(
        self, folders: Sequence[Path], profile: HardwareProfile, inputs: Sequence[Any], threads: int = 1
    ) -> list[Latency]:
        require()
        from planish_openvino.timing import time_files

        return time_files([folder / FILE for folder in folders], _tensors(inputs), threads)

    def write_build_files(
        self, folder: Path, profile: HardwareProfile, inputs: Sequence[Any] | None = None
    ) -> tuple[str, ...]:
        """Those of the ONNX backend, with OpenVINO in the place of ONNX Runtime."""
        names = _onnx().write_build_files(folder, profile, inputs)
        shutil.copyfile(RUNTIME, folder / "runtime.py")
        told = json.loads((folder / "build.json").read_text())
        del told["providers"]
        versions = {"openvino": profile.runtime.versions.get("openvino", ">=2026.1")}
        told |= {"versions": versions, "device_name": "CPU", "config": CONFIG}
        (folder / "build.json").write_text(json.dumps(told, indent=2) + "\n")
        return names


def _onnx() -> Backend:
    return registry().find_backend("onnx")


def _of_the_file(notes: Sequence[str]) -> list[str]:
    """Without those that tell what ONNX Runtime makes of it: it does not run here."""
    return [note for note in notes if "ONNX Runtime" not in note]


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
