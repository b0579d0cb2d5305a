"""The TFLite backend: writes the file itself, runs it with ai-edge-litert."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from planish.compiler.contracts import Backend, Check, Lowered, Runner
from planish.compiler.errors import MissingDependency, UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.host import not_this_machine
from planish.compiler.program import Program
from planish.compiler.report import Latency
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.signature import Signature

if TYPE_CHECKING:
    from planish.backends.to_tflite.ends import Ends

FILE = "model.tflite"
ENDS = "ends.json"
"""How the Program's inputs and outputs lie in the file."""


@dataclass(frozen=True)
class TfliteBackend(Backend):
    """``model.tflite`` for LiteRT, TensorFlow Lite and TensorFlow Lite Micro.

    Attributes:
        ends: what a quantized file takes and gives; None: integers where the device has nothing else, else floats.
        channels_last: images are taken and given as [N, H, W, C]; if not, the file transposes them itself.
        weights: how constants lie in the file. float16 halves it; the device computes in float32 all the same.
        python: another Python, whose runtime (ai-edge-litert or tflite-runtime) runs and times the files.

    Raises UserError for an option that is none of these.
    """

    name: ClassVar[str] = "tflite"
    fixed_shapes: ClassVar[bool] = True
    ends: Literal["float", "int8"] | None = None
    channels_last: bool = True
    weights: Literal["float32", "float16"] = "float32"
    python: str | None = None

    def __post_init__(self) -> None:
        for option, choices in (("ends", ("float", "int8", None)), ("weights", ("float32", "float16"))):
            if getattr(self, option) not in choices:
                listed = " or ".join(repr(choice) for choice in choices if choice is not None)
                raise UserError(f"Give the {self.name} backend {option}={listed}, not {getattr(self, option)!r}.")

    @property
    def interpreter(self) -> str:
        """The Python that runs the files."""
        return self.python or sys.executable

    def scheme(self, profile: HardwareProfile) -> QuantizationScheme | None:
        from planish.backends.to_tflite.scheme import scheme_for

        return scheme_for(profile)

    def checks(self, profile: HardwareProfile) -> tuple[Check, ...]:
        _require()
        from planish.backends.to_tflite.checks import checks_for

        return checks_for(profile)

    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        _require()
        from planish.backends.to_tflite.lowering import lower

        return lower(program, profile, folder, self)

    def cannot_run(self, profile: HardwareProfile) -> str | None:
        if importlib.util.find_spec("ai_edge_litert") is None:
            return "ai-edge-litert is not installed"
        from planish.backends.to_tflite.gate import runtime_of

        found = self.python is None or runtime_of(self.python)
        return None if found else f"{self.python} is no Python with ai-edge-litert or tflite-runtime"

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        return self.cannot_run(profile) or not_this_machine(profile)

    def load(self, folder: Path, profile: HardwareProfile, signature: Signature, runtime: dict[str, Any]) -> Runner:
        _require()
        from planish.backends.to_tflite.runner import Elsewhere, LiteRt

        if self.python is not None:
            return Elsewhere(folder / FILE, _ends(folder), self.python)
        return LiteRt(folder / FILE, _ends(folder), threads=os.cpu_count() or 1)

    def time(
        self, folders: Sequence[Path], profile: HardwareProfile, inputs: Sequence[Any], threads: int = 1
    ) -> list[Latency]:
        _require()
        from planish.backends.to_tflite.gate import time_files

        files = [folder / FILE for folder in folders]
        return time_files(files, [_ends(folder) for folder in folders], inputs, threads, self.interpreter)

    def write_build_files(
        self, folder: Path, profile: HardwareProfile, inputs: Sequence[Any] | None = None
    ) -> tuple[str, ...]:
        _require()
        from planish.backends.to_tflite.build_folder import write

        return write(folder, profile, inputs)


def _ends(folder: Path) -> Ends:
    from planish.backends.to_tflite.ends import Ends

    return Ends.model_validate_json((folder / ENDS).read_text())


def _require() -> None:
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise MissingDependency("ai-edge-litert", "tflite")
