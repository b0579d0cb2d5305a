"""What happened, step by step, in figures. Measured and estimated are never mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Decision(_Record):
    """What became of one op, and why."""

    module: str
    op: str
    node: str
    outcome: str
    reason: str


class Latency(_Record):
    """Time of one call of the artifact."""

    median_ms: float
    p95_ms: float | None = None
    threads: int | None = None
    batch: int
    runs: int = 0
    source: Literal["measured", "estimated"]
    how: str
    """The runtime and machine that measured it, or the assumptions of the estimate."""


class Error(_Record):
    """Numerical distance of one output from its reference."""

    output: int
    dtype: str
    max_abs: float
    max_relative: float
    snr_db: float | None
    """10 log10(signal / error); None where both agree to the last bit."""
    within_a_quantum: float | None = None
    """Share of values at most one quantum away, for quantized outputs."""


class Figures(_Record):
    """What an artifact costs and is worth."""

    size_bytes: int
    macs: int
    parameters: int
    latency: Latency | None = None
    metric: float | None = None
    snr_db: float | None = None
    """Of the worst output against the float Program, on calibration inputs."""


class Step(_Record):
    """One pass: what it was, why it ran, what it made of the artifact, and whether it was kept."""

    compression: str
    options: dict[str, Any]
    reason: str
    outcome: Literal["kept", "undone", "kept on request", "exact"]
    verdict: str
    """Why it was kept or undone, with the figures."""
    before: Figures | None = None
    after: Figures | None = None
    seconds: float
    peak_memory_mb: float
    decisions: list[Decision] = []


class Report(_Record):
    """The whole compilation. ``notes`` are the first thing to read: what was assumed, what could not be done."""

    model: str
    target: str
    backend: str
    notes: list[str] = []
    baseline: Figures | None = None
    result: Figures | None = None
    steps: list[Step] = []
    not_planned: dict[str, str] = {}
    """Passes that the plan left out, with the reason."""
    runtime_decisions: list[Decision] = []
    """What the runtime itself did otherwise than planned."""
    errors: list[Error] = []
    """Artifact against the Program it came from."""
    seconds: dict[str, float] = {}
    """Time of each stage of the compilation."""
    peak_memory_mb: float = 0.0

    def save(self, path: Path) -> Path:
        return write_atomically(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Report:
        return cls.model_validate_json(path.read_text())

    def __str__(self) -> str:
        from planish.compiler.report_table import as_text

        return as_text(self)


def write_atomically(path: Path, text: str) -> Path:
    """Write beside, then rename: a reader sees the old file or the new one, never half of it."""
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(text)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
