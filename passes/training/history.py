"""What a training did, in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """One stretch of a training, up to an evaluation: means of the losses over its steps."""

    step: int
    epoch: float
    seconds: float
    losses: dict[str, float]
    metric: float | None = None


@dataclass
class History:
    """All stretches, which of them was the best, and why training stopped."""

    records: list[Record] = field(default_factory=list)
    best: int | None = None
    """Step after which the weights that were kept had been taken; None: the last ones, no metric was given."""
    stopped: str = ""
    steps: int = 0
    seconds: float = 0.0
    """Of training, evaluations and checkpoints included; those before a restart too."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> History:
        return cls(**{**plain, "records": [Record(**record) for record in plain["records"]]})

    def __str__(self) -> str:
        if not self.records:
            return "not trained"
        last = self.records[-1]
        losses = ", ".join(f"{name} {value:.4g}" for name, value in last.losses.items())
        kept = next((record for record in self.records if record.step == self.best), None)
        metric = f", metric {kept.metric:.4f} after step {kept.step}" if kept and kept.metric is not None else ""
        return f"{self.steps} steps in {self.seconds:.0f} s ({self.stopped}): loss {losses}{metric}"
