"""The Core ML backend: an ML Program, proven by replaying the saved package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from planish.backends.to_coreml.interface import Image
from planish.compiler.contracts import Backend, Check, Lowered, Runner
from planish.compiler.errors import MissingDependency, UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.signature import Signature

FILE = "model.mlpackage"
NOT_APPLE = (
    "Outputs were computed here by a reference evaluation of the saved package, not by Apple's runtime: "
    "no test of the device."
)


@dataclass(frozen=True)
class CoreMLBackend(Backend):
    """``model.mlpackage`` for the operating system that the profile names.

    ``precision``: what the package computes in; float16 is what the Neural Engine has.
    ``largest_batch``: the bound of a dynamic batch; Core ML takes none without.
    ``weights``: weights alone in ``int8``, ``int4``, ``palette-8``, ``palette-6``, ``palette-4`` or ``palette-2``
    (compress.py says which system each needs); None keeps those of the Program.
    ``images``: inputs, by name, that the app gives as images; the batch is 1 then.
    ``labels``: names of the classes; the package tells the best and the scores of all. The batch is 1 then, and the
    output is expected to be probabilities.
    ``metadata``: author, license, version, description, and any other name, as Xcode shows them.

    Raises UserError for options that do not fit.
    """

    name: ClassVar[str] = "coreml"

    precision: Literal["float16", "float32"] = "float16"
    largest_batch: int = 32
    weights: str | None = None
    images: Mapping[str, Image] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in ("float16", "float32"):
            raise UserError(f"Give the precision of a package as 'float16' or 'float32', not {self.precision!r}.")
        if self.largest_batch < 1:
            raise UserError(f"Give largest_batch at least 1, not {self.largest_batch}.")
        if len(set(self.labels)) < len(self.labels):
            raise UserError("Give every class a label of its own.")

    def scheme(self, profile: HardwareProfile) -> QuantizationScheme | None:
        from planish.backends.to_coreml.scheme import scheme_for

        return scheme_for(profile)

    def checks(self, profile: HardwareProfile) -> tuple[Check, ...]:
        from planish.backends.to_coreml.checks import CHECKS

        return CHECKS

    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        _require()
        from planish.backends.to_coreml.lower import lower

        return lower(self, program, profile, folder)

    def cannot_run(self, profile: HardwareProfile) -> str | None:
        return None if importlib.util.find_spec("coremltools") else "coremltools is not installed"

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        return "Core ML runs on Apple's devices only"

    def load(self, folder: Path, profile: HardwareProfile, signature: Signature, runtime: dict[str, Any]) -> Runner:
        _require()
        from planish.backends.to_coreml.runner import PackageRunner

        return PackageRunner(folder / FILE, runtime)

    def write_build_files(
        self, folder: Path, profile: HardwareProfile, inputs: Sequence[Any] | None = None
    ) -> tuple[str, ...]:
        _require()
        from planish.backends.to_coreml import build_folder

        return build_folder.write(folder, profile, inputs)


def _require() -> None:
    if importlib.util.find_spec("coremltools") is None:
        raise MissingDependency("coremltools", "coreml")
