"""What a pass and a backend are. Authors implement these; the pipeline does everything around them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from torch import fx

from planish.compiler.calibration import Calibration
from planish.compiler.coupling.inference import Rules
from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.options import fields_of, restored
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.progress import Stages
from planish.compiler.report import Decision, DeviceReport, Latency
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.signature import Signature
from planish.compiler.training_data import TrainingData

# ---------------------------------------------------------------------- passes


class Stage(IntEnum):
    """When a pass runs in a plan. Later stages rely on what earlier ones made."""

    CLEAN = 0
    STRUCTURE = 10
    SPARSITY = 20
    RECOVERY = 25
    FOLDING = 28
    """What training should not see: folded batch norms normalize no more."""
    PRECISION = 30


@dataclass(frozen=True)
class Budget:
    """What the user needs. None means: no bound.

    ``metric_drop`` is in the metric's own unit (0.01 is one point of an accuracy in 0..1).
    """

    latency_ms: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    metric_drop: float | None = None

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and value >= 0):
                raise UserError(f"Give Budget({option.name}=…) a number of at least 0, not {value!r}.")


@dataclass(frozen=True)
class Situation:
    """What a plan is made from: the Program, the device, what its backend takes, and what the user needs."""

    program: Program
    profile: HardwareProfile
    scheme: QuantizationScheme | None
    budget: Budget
    trains: bool = False
    """Whether there is data to train on."""
    planned: tuple[Pass, ...] = ()
    """The passes of earlier stages that the plan has so far."""
    coupling_rules: Rules = field(default_factory=dict)
    """As in the Context of the passes."""


@dataclass
class Context:
    """What a pass may use while it runs, and where it says what it decided."""

    profile: HardwareProfile
    scheme: QuantizationScheme | None
    calibration: Calibration
    seed: int = 0
    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a pass has to say beyond decisions about nodes (how a training went); the Report has it with the step."""
    train: TrainingData | None = None
    teacher: Any = None
    """What the user passed as ``teacher``: anything callable with the model's inputs, or several of them."""
    metric: Callable[[Callable[..., Any]], float] | None = None
    """Gets ``run(*inputs) -> outputs``; higher is better."""
    fit: Callable[..., Any] | None = None
    """How the pass around this one wants Programs trained (``passes/training/recover.py``); None: on labels."""
    original: Program | None = None
    """The Program before any pass."""
    progress: Stages | None = None
    """The display of the compilation."""
    coupling_rules: Rules = field(default_factory=dict)
    """How ops couple channels that planish itself has no rule for, from plugins."""

    def decide(self, node: fx.Node, outcome: str, reason: str) -> None:
        """Record in the Report what became of ``node``, and why."""
        self.decisions.append(
            Decision(module=source_module(node), op=op_name(node), node=node.name, outcome=outcome, reason=reason)
        )


@dataclass(frozen=True)
class Proposal:
    """A pass for the plan, or none, and the reason in a sentence with figures."""

    compression: Pass | None
    reason: str
    instead_of: tuple[Pass, ...] = ()
    """Planned passes that ``compression`` holds, and that therefore do not run by themselves."""


class Pass(ABC):
    """Rewrites a Program. A subclass is a frozen dataclass: its options are its fields.

    ``run`` gets a valid Program and returns a valid one. It works on ``program.fork()``, replaces tensors and
    never writes into them. Every option has a default. Requirements, verification, timing, recording and error
    wrapping are the pipeline's.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    exact: ClassVar[bool] = False
    """Whether outputs stay the same but for rounding: such a pass is kept without being judged."""
    requires: ClassVar[tuple[type[Pass], ...]] = ()
    """Passes that run before this one (with their default options), if they have not yet."""

    @abstractmethod
    def run(self, program: Program, context: Context) -> Program: ...

    @classmethod
    def propose(cls, situation: Situation) -> Proposal | None:
        """Whether this pass pays in this situation. None: it has nothing to say (only the user asks for it)."""
        return None

    def options(self) -> dict[str, Any]:
        """The fields by name, ready for TOML and JSON; None is left out."""
        return fields_of(self)

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """The pass with ``options``. Raises UserError for one it does not have, with the closest names."""
        return cls(**restored(cls, options, cls.name))


# ---------------------------------------------------------------------- backends


@dataclass(frozen=True)
class Check:
    """One requirement of a backend: a sentence, and a function that yields the nodes that break it."""

    name: str
    sentence: str
    offenders: Callable[[Program], Iterable[fx.Node]]
    severity: Literal["error", "warning"] = "error"
    source: str = ""
    """URL of the vendor's page that says so."""


@dataclass(frozen=True)
class Finding:
    """A node that breaks a Check."""

    check: Check
    node: fx.Node

    @property
    def op(self) -> str:
        return op_name(self.node)

    @property
    def module(self) -> str:
        return source_module(self.node)

    def __str__(self) -> str:
        return f"{self.check.sentence} ({f'{self.op} in {self.module}' if self.module else self.op})"


class Requirement(Protocol):
    """What a Check and a rule over files have in common."""

    @property
    def name(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    @property
    def severity(self) -> Literal["error", "warning"]: ...
    @property
    def source(self) -> str: ...


@dataclass(frozen=True)
class FileFinding:
    """A node of a file, made by planish or not, that breaks a requirement."""

    check: Requirement
    op: str
    module: str
    """Where the file says so; else the name of the node."""

    def __str__(self) -> str:
        return f"{self.check.sentence} ({self.op} in {self.module})"


def run_checks(program: Program, checks: Iterable[Check]) -> list[Finding]:
    return [Finding(check, node) for check in checks for node in check.offenders(program)]


@dataclass(frozen=True)
class Lowered:
    """What a backend made of a Program."""

    files: tuple[str, ...]
    """Names of the files, relative to the folder that was given."""
    decisions: tuple[Decision, ...] = ()
    """What the runtime made of the ops, where it can be asked: which run in float although meant for INT8."""
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    """What ``load`` needs to know again (session options); kept in the manifest."""
    precision: Literal["float32", "float16"] = "float32"
    """What the files compute in. For float16 the proof allows for its rounding."""
    cannot_run: str | None = None
    """Why these very files cannot be run here, although the backend can run others."""
    stored: Program | None = None
    """The Program with its weights as the files hold them, where lowering has rounded them on request."""
    on_device: tuple[DeviceReport, ...] = ()
    """What this machine found of the files, where it is the device and they are built on it."""


class Runner(ABC):
    """A loaded artifact: flat lists of torch tensors in and out, in the order of the Program's leaves.

    Outputs that are no tensors (None, numbers) are left out: they stand in the manifest.
    """

    @abstractmethod
    def __call__(self, leaves: Sequence[Any]) -> list[Any]: ...


class Backend(ABC):
    """Turns a Program into files that one family of runtimes reads, and runs them where this machine can."""

    name: ClassVar[str]
    fixed_shapes: ClassVar[bool] = False
    """Whether its files hold fixed sizes only, whatever the device takes."""

    def scheme(self, profile: HardwareProfile) -> QuantizationScheme | None:
        """The quantization this backend fuses on that device, as data; None where it runs no integers."""
        return None

    def checks(self, profile: HardwareProfile) -> tuple[Check, ...]:
        """What a Program has to fulfil. The same Checks serve ``planish check``, the error and the tests."""
        return ()

    def check_file(self, file: Path, profile: HardwareProfile) -> list[FileFinding]:
        """As ``checks``, for a file that the runtime reads, whoever made it. Raises UserError if it is damaged."""
        raise UserError(f"Choose another target: the {self.name} backend checks no files, only PyTorch models.")

    @abstractmethod
    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        """Write the files into the empty ``folder``. Raises LoweringError naming node and module."""

    def cannot_run(self, profile: HardwareProfile) -> str | None:
        """Why artifacts for ``profile`` cannot be run here at all (no runtime); None if they can."""
        return f"the {self.name} backend cannot run artifacts here"

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        """Why times taken here would not be the device's; None if this machine is such a device."""
        return self.cannot_run(profile)

    def load(self, folder: Path, profile: HardwareProfile, signature: Signature, runtime: dict[str, Any]) -> Runner:
        """A Runner of the files in ``folder``. ``runtime`` is what ``lower`` left in the manifest."""
        raise UserError(f"Run the artifact on the device: {self.cannot_run(profile)}.")

    def time(
        self, folders: Sequence[Path], profile: HardwareProfile, inputs: Sequence[Any], threads: int = 1
    ) -> list[Latency]:
        """Time several artifacts against each other in one run, in turns, each in a process of its own."""
        raise UserError(f"Time the artifact on the device: {self.cannot_time(profile)}.")

    def write_build_files(
        self, folder: Path, profile: HardwareProfile, inputs: Sequence[Any] | None = None
    ) -> tuple[str, ...]:
        """Write beside the files in ``folder`` what builds and checks them on the device; () where nothing does.

        ``inputs``: the tensors of one call, for samples; drawn if left out. Returns the names of the files.
        """
        return ()
