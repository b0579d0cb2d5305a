"""The model families of the ONNX tests through trace -> package -> reference evaluation.

``python -m tests.backends.to_coreml.families [--half] [group or name …]`` prints one line a family: the largest error
against PyTorch at batches 1, 2 and 3 relative to the largest value, or what failed. Groups: ``layers`` (without any
name), ``transformers``, ``timm``.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from planish.backends.to_coreml.backend import FILE, CoreMLBackend
from planish.backends.to_coreml.runner import PackageRunner
from planish.backends.to_onnx.lower import output_leaves
from planish.compiler.half_precision import in_half_precision
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.trace import trace
from planish.compiler.verify import snr_db
from tests.backends.to_onnx.families import Family, shake

TOLERANCE = 1e-5
FARTHER = 4.0
"""Where float32 is not enough for a net of drawn weights: times as far from float64 as PyTorch's own float32."""


@dataclass(frozen=True)
class Outcome:
    """What became of a family."""

    error: float | None = None
    """Largest difference to PyTorch, relative to the largest value of that output."""
    farther: float | None = None
    """Where that is more than TOLERANCE: the error against PyTorch in float64, over that of PyTorch in float32."""
    snr: float | None = None
    """The worst signal-to-noise ratio of the package; None if it is exact."""
    rounding: float | None = None
    """The same of the Program with every result rounded to float16."""
    notes: tuple[str, ...] = ()
    failure: str = ""

    @property
    def agrees(self) -> bool:
        """In float32, to the tolerance, or as well as float32 can."""
        near = self.error is not None and self.error <= TOLERANCE
        return not self.failure and (near or (self.farther is not None and self.farther <= FARTHER))


def attempt(family: Family, precision: str = "float32", target: str = "iphone-15") -> Outcome:
    torch.manual_seed(0)
    model = shake(family.build()).eval()
    profile = registry().find_profile(target)
    try:
        program = trace(model, family.inputs(2))
        with tempfile.TemporaryDirectory() as scratch:
            lowered = CoreMLBackend(precision).lower(program, profile, Path(scratch))  # type: ignore[arg-type]
            if lowered.cannot_run:
                return Outcome(failure=lowered.cannot_run)
            runner = PackageRunner(Path(scratch) / FILE, lowered.runtime)
            return _compare(family, model, program, runner)
    except Exception as failure:  # the table lists it
        first = str(failure).strip().partition("\n")[0][:300]
        return Outcome(failure=f"{type(failure).__name__}: {first}")


def _compare(family: Family, model: torch.nn.Module, program: Program, runner: PackageRunner) -> Outcome:
    computed = [isinstance(leaf, fx.Node) for leaf in output_leaves(program)]  # the rest is None or a number
    half = in_half_precision(program)
    calls = []
    for batch in (1, 2, 3) if program.dynamic_axes else (2,):
        torch.manual_seed(batch)
        inputs = family.inputs(batch)
        calls.append((inputs, _called(model, inputs, computed), runner(inputs.leaves())))
    ratios, own, worst = [], [], 0.0
    for inputs, wanted, got in calls:
        for a, b, c in zip(wanted, got, _called(half, inputs, computed), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype, f"{b.dtype}{[*b.shape]} instead of {a.dtype}{[*a.shape]}"
            worst = max(worst, relative_error(a, b))
            ratios.append(snr_db(a.double(), b.double()))
            own.append(snr_db(a.double(), c.double()))
    known = [ratio for ratio in ratios if ratio is not None]
    rounding = [ratio for ratio in own if ratio is not None]
    farther = _farther(model, calls, computed) if TOLERANCE < worst < 1e-2 else None
    return Outcome(worst, farther, min(known, default=None), min(rounding, default=None))


def _called(model: Any, inputs: Inputs, computed: list[bool]) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(inputs.call(model))
    return [torch.as_tensor(leaf) for leaf, node in zip(leaves, computed, strict=True) if node]


def _farther(model: torch.nn.Module, calls: list[Any], computed: list[bool]) -> float | None:
    """Errors against float64 of the package over those of PyTorch in float32; None if float64 does not run."""
    exact, package, plain = copy.deepcopy(model).double(), 0.0, 0.0
    for inputs, wanted, got in calls:
        wide = inputs.map(_doubled)
        try:
            best = _called(exact, wide, computed)
        except RuntimeError:  # it computes in float32 by name
            return None
        package = max(package, *(relative_error(a, b) for a, b in zip(best, got, strict=True)))
        plain = max(plain, *(relative_error(a, b) for a, b in zip(best, wanted, strict=True)))
    return package / plain if plain else None


def _doubled(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def relative_error(wanted: Tensor, got: Tensor) -> float:
    """Infinite where one of the two is no number and the other is."""
    if not wanted.numel():
        return 0.0
    wanted, got = wanted.detach().double(), got.detach().double()
    same = (wanted == got) | (wanted.isnan() & got.isnan())
    difference = torch.where(same, 0.0, (wanted - got).abs()).nan_to_num(torch.inf, torch.inf)
    finite = wanted[wanted.isfinite()].abs()
    return float(difference.max() / finite.max().clamp_min(1e-12)) if finite.numel() else float(difference.max())


def main(arguments: list[str]) -> int:
    from tests.backends.to_onnx import family_layers, family_transformers
    from tests.backends.to_onnx.family_models import timm_families

    precision = "float16" if "--half" in arguments else "float32"
    groups = {
        "layers": family_layers.families(),
        "transformers": family_transformers.families(),
        "timm": timm_families(),
    }
    known = {family.name: [family] for group in groups.values() for family in group} | groups
    names = [name for name in arguments if not name.startswith("--")] or ["layers"]
    bad = 0
    for family in [each for name in names for each in known[name]]:
        start = time.process_time()
        outcome = attempt(family, precision)
        good = outcome.agrees if precision == "float32" else not outcome.failure
        bad += not good
        figures = "" if outcome.error is None else f"error={outcome.error:.1e} snr={outcome.snr} own={outcome.rounding}"
        figures += "" if outcome.farther is None else f" {outcome.farther:.1f} times as far from float64 as PyTorch"
        seconds = time.process_time() - start
        print(f"{'ok  ' if good else 'FAIL'} {family.name:36} {seconds:5.1f} s {figures} {outcome.failure}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
