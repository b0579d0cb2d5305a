"""Decides what pays: every gain is measured on the lowered artifact, and what does not gain is undone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from planish.compiler import cost
from planish.compiler.artifact import calling, constant_outputs, writing
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Backend, Budget, Lowered
from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.memory import return_freed_memory
from planish.compiler.plan import PlannedPass
from planish.compiler.program import Program
from planish.compiler.report import Figures, Latency
from planish.compiler.roofline import estimate_latency
from planish.compiler.signature import Signature
from planish.compiler.verify import Outputs, compare, demand_float, outputs_of, worst_snr

FASTER = 0.98
"""A pass pays if it takes the time to less than this share: below lies the noise of the machine."""
SMALLER = 0.98

Metric = Callable[[Callable[..., Any]], float]


@dataclass
class Candidate:
    """A Program with what the backend made of it."""

    program: Program
    folder: Path
    lowered: Lowered
    figures: Figures
    outputs: Outputs
    """What the Program computes on the Judge's batches."""


@dataclass
class Judgement:
    outcome: Literal["kept", "undone", "kept on request"]
    verdict: str
    candidate: Candidate
    before: Figures
    after: Figures


@dataclass
class Judge:
    """Lowers, times and scores Programs for one device."""

    backend: Backend
    profile: HardwareProfile
    budget: Budget
    metric: Metric | None
    batches: Sequence[Inputs]
    """What the outputs of Programs are compared on; the last one is timed."""
    scratch: Path
    reference: Candidate | None = None
    """Before any judged pass: what signal-to-noise ratios and losses of the metric are taken against."""

    def baseline(self, program: Program) -> Candidate:
        """``program`` lowered, not timed yet: times mean something only beside each other."""
        candidate = self.reference = self._lower(program)
        candidate.figures.metric = self._score(candidate)
        if self.backend.cannot_time(self.profile) is not None:
            candidate.figures.latency = estimate_latency(program, self.profile)
        return candidate

    def compare(self, best: Candidate, program: Program, planned: PlannedPass) -> Judgement:
        """Lower ``program``, time it against ``best`` in one run, and say whether the pass stays."""
        candidate = self._lower(program)
        candidate.figures.snr_db = worst_snr(compare((self.reference or best).outputs, candidate.outputs))
        candidate.figures.metric = self._score(candidate)
        before = best.figures.model_copy()
        before.latency, candidate.figures.latency = self._times(best, candidate)
        best.figures.latency = before.latency
        pays, why = self._pays(before, candidate.figures)
        if pays:
            outcome: Literal["kept", "undone", "kept on request"] = "kept"
        elif planned.requested:
            outcome, why = "kept on request", f"Kept although it does not pay: {why}"
        else:
            outcome = "undone"
        return Judgement(outcome, why, candidate, before, candidate.figures)

    def lowered_again(self, best: Candidate, program: Program, name: str) -> Candidate:
        """``program``, which the exact pass ``name`` made of ``best``. Raises VerificationError if it is not exact."""
        candidate = self._lower(program)
        demand_float(compare(best.outputs, candidate.outputs), f"the Program after {name}")
        candidate.figures.metric = self._score(candidate)
        candidate.figures.snr_db = best.figures.snr_db
        self.time_alone(candidate)
        return candidate

    def time_alone(self, candidate: Candidate) -> None:
        """The latency of ``candidate`` where nothing was compared with it."""
        if candidate.figures.latency is None:
            candidate.figures.latency = self._times(candidate)[0]

    # ------------------------------------------------------------------ measuring

    def _lower(self, program: Program) -> Candidate:
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        with writing(folder):
            lowered = self.backend.lower(program, self.profile, folder)
        return_freed_memory()
        size = sum((folder / name).stat().st_size for name in lowered.files)
        totals = cost.totals(program)
        figures = Figures(size_bytes=size, macs=totals.macs, parameters=totals.parameters)
        return Candidate(program, folder, lowered, figures, outputs_of(program, self.batches))

    def _times(self, *candidates: Candidate) -> list[Latency]:
        if self.backend.cannot_time(self.profile) is not None:
            return [estimate_latency(each.program, self.profile) for each in candidates]
        return self.backend.time([each.folder for each in candidates], self.profile, self.batches[-1].leaves())

    def _score(self, candidate: Candidate) -> float | None:
        if self.metric is None or self.backend.cannot_run(self.profile) or candidate.lowered.cannot_run:
            return None
        run = runner_of(candidate, self.backend, self.profile)
        try:
            return float(self.metric(run))
        except Exception as failure:  # the user's own function
            raise UserError(f"Mend the metric: it raised {type(failure).__name__}: {failure}") from failure

    # ------------------------------------------------------------------ deciding

    def _pays(self, before: Figures, after: Figures) -> tuple[bool, str]:
        lost = self._metric_lost(before, after)
        if lost:
            return False, lost
        assert before.latency is not None and after.latency is not None
        ratio = after.latency.median_ms / before.latency.median_ms
        milliseconds = f"{before.latency.median_ms:.3g} -> {after.latency.median_ms:.3g} ms {after.latency.source}"
        told = f"{milliseconds} ({1 / ratio:.2f}x as fast)"
        if ratio < FASTER:
            return True, told + "."
        share = after.size_bytes / before.size_bytes
        if self.budget.size_mb is not None and share < SMALLER and before.size_bytes > self.budget.size_mb * 1e6:
            return True, f"{told}, no faster, but {share:.2f} of the size, which the budget asks for."
        return False, f"{told}, no faster."

    def _metric_lost(self, before: Figures, after: Figures) -> str:
        if self.budget.metric_drop is None or before.metric is None or after.metric is None:
            return ""
        start = self.reference.figures.metric if self.reference is not None else None
        whole = before.metric if start is None else start
        if whole - after.metric <= self.budget.metric_drop:
            return ""
        allowed = f"the budget allows a drop of {self.budget.metric_drop:g} from {whole:.4f}"
        return f"The metric falls from {before.metric:.4f} to {after.metric:.4f}; {allowed}."


def runner_of(candidate: Candidate, backend: Backend, profile: HardwareProfile) -> Callable[..., Any]:
    """A callable of the lowered files with the arguments and outputs of the model."""
    signature = Signature.of(candidate.program.graph)
    runner = backend.load(candidate.folder, profile, signature, candidate.lowered.runtime)
    return calling(runner, signature, constant_outputs(candidate.program))


def probes(calibration: Calibration | None, example: Inputs, rows: int = 4) -> tuple[Inputs, ...]:
    """A few rows that no pass has seen as such: means of two rows for real numbers, the rows for whole ones."""
    source = Inputs.join([*calibration.samples(2 * rows, at_once=2 * rows)]) if calibration else example
    half = max(1, source.batch_size // 2)
    first, second = [*source.split(half)][:2] if source.batch_size > 1 else (source, source)
    mixed = iter([_mean(a, b) for a, b in zip(first.leaves(), second.leaves(), strict=True)])
    return (first.map(lambda _: next(mixed)),)


def _mean(a: Any, b: Any) -> Any:
    real = isinstance(a, Tensor) and a.is_floating_point() and a.shape == b.shape
    return (a + b) / 2 if real else a
