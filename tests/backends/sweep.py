"""What the sweeps over model families share: an outcome, and a line for each family."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.backends.to_onnx.families import Family


@dataclass(frozen=True)
class Outcome:
    traced: bool = False
    lowered: str = ""
    """How; empty if it was not."""
    error: float | None = None
    """Largest difference to PyTorch, relative to the largest value of that output."""
    failure: str = ""
    tolerance: float = 1e-4

    @property
    def good(self) -> bool:
        return self.error is not None and self.error <= self.tolerance


def first_line(failure: BaseException) -> str:
    text = str(failure).strip()
    return f"{type(failure).__name__}: {text.splitlines()[0][:260]}" if text else type(failure).__name__


def sweep(attempt: Callable[[Family], Outcome], names: Sequence[str]) -> int:
    """Print one line for each of the families ``names``, or for all of them; how many are not good."""
    from tests.backends.to_onnx.family_models import families

    chosen = {family.name: family for family in families()}
    bad = 0
    for name in names or chosen:
        start = time.monotonic()
        outcome = attempt(chosen[name])
        bad += not outcome.good
        error = "-" if outcome.error is None else f"{outcome.error:.1e}"
        state, seconds = "ok  " if outcome.good else "FAIL", time.monotonic() - start
        print(f"{state} {name:40} traced={outcome.traced!s:5} error={error:8} {seconds:5.1f} s  ", end="")
        print(outcome.failure or outcome.lowered, flush=True)
    return bad
