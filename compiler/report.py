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
    notes: list[str] = []
    """What the pass said beyond that: how a training went."""


class DeviceOutput(_Record):
    """One output of the engine against the expected one."""

    name: str
    snr_db: float | None
    max_abs: float


class DeviceReport(_Record):
    """What the scripts of an artifact found on the device: ``device_report.json``."""

    format: Literal[1]
    target: str
    model_sha256: str
    device: dict[str, str]
    """What it is: name, versions, power mode, memory."""
    outputs: list[DeviceOutput]
    latency_ms: dict[Literal["p50", "p95", "p99"], float]
    runs: int
    batch: int
    when: str
    engine_bytes: int
    built_by: str
    build_seconds: float | None = None
    layers: list[dict[str, str]] = []
    """Of the engine, as its inspector lists them: name and types of the inputs."""

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.device.items() if name in _TOLD)
        latency = ", ".join(f"{name} {value:.4g} ms" for name, value in self.latency_ms.items())
        distances = [output.snr_db for output in self.outputs if output.snr_db is not None]
        outputs = f"{min(distances):.1f} dB at the least" if distances else "equal to the last bit"
        return (
            f"{facts}: {latency} over {self.runs} runs of batch {self.batch}; outputs against the expected ones: "
            f"{outputs}; engine {self.engine_bytes / 1e6:.2f} MB by {self.built_by}; {self.when}."
        )


_TOLD = (
    "device", "jetpack", "tensorrt", "power mode", "onnxruntime", "onnxruntime-qnn", "openvino", "threads",
)  # fmt: skip


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
    on_device: list[DeviceReport] = []
    """Measured on devices, and brought back by ``planish import-report``."""
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
