"""Several targets in one compilation: ``planish.compile(model, targets=[…])``.

What they have in common is done once (once.py). A target that fails takes none of the others with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from planish.compiler import artifact as artifacts
from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.job import Job
from planish.compiler.once import Once
from planish.compiler.progress import Stages
from planish.compiler.request import Request
from planish.compiler.result import Result
from planish.compiler.targets import Target, find_backend, find_profile

Finish = Callable[[Job, Path, Path], Result]


@dataclass
class Fleet(Mapping[str, Result]):
    """What ``planish.compile`` returns for several targets: target -> Result, for those that succeeded."""

    targets: tuple[str, ...]
    """All that were asked for, in this order."""
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    """Target -> what it failed of."""
    reused: dict[str, dict[str, str]] = field(default_factory=dict)
    """Target -> pass -> the target that it was run for: nothing that the pass reads of the two differs."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of what was done for all of them before the first pass; the rest is in the Reports."""

    def __getitem__(self, target: str) -> Result:
        """Raises what the target failed of, if it did."""
        if target in self.failures:
            raise self.failures[target]
        return self.results[target]

    def __contains__(self, target: object) -> bool:
        return target in self.results

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __str__(self) -> str:
        from planish.compiler.fleet_table import as_text

        return as_text(self)


def compile_fleet(
    request: Request, targets: Iterable[Target], output: Path | None, progress: Stages, finish: Finish
) -> Fleet:
    """A Result for each target, in ``output``/NAME.

    Raises UserError for a target or a backend that is unknown, and for a model, inputs or data that cannot be used:
    no target could do without. What is about one target alone is kept in ``Fleet.failures``.
    """
    profiles = _profiles(targets)
    for profile in profiles:
        find_backend(profile, request.backend)
    _demand_room(output)
    once = Once(request, progress, len(profiles))
    torch.manual_seed(request.seed)
    once.prepare()
    fleet = Fleet(tuple(profile.name for profile in profiles), reused=once.reused)
    jobs = {profile.name: job for profile in profiles if (job := _started(request, profile, once, fleet)) is not None}
    fleet.seconds = dict(progress.seconds)
    for name, job in jobs.items():
        progress.seconds.clear()
        torch.manual_seed(request.seed)  # as if it were the only target
        try:
            with artifacts.new_folder(None if output is None else output / name) as folder:
                fleet.results[name] = finish(job, folder, folder if output is None else output / name)
        except Exception as failure:  # kept whole: ``Fleet[name]`` raises it
            fleet.failures[name] = failure
    return fleet


def _profiles(targets: Iterable[Target]) -> list[HardwareProfile]:
    if isinstance(targets, (str, Path, HardwareProfile)):
        raise UserError(f"Pass a list as targets=, or target={targets!r}.")
    profiles = [find_profile(target) for target in targets]
    if not profiles:
        raise UserError("Name at least one target in targets=.")
    names = [profile.name for profile in profiles]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Name each target once in targets=: {name} is there {names.count(name)} times.")
    return profiles


def _demand_room(output: Path | None) -> None:
    if output is not None and output.exists() and not output.is_dir():
        raise UserError(f"Choose another output: {output} is no folder.")


def _started(request: Request, profile: HardwareProfile, once: Once, fleet: Fleet) -> Job | None:
    try:
        return Job.start(request, profile, once)
    except Exception as failure:
        fleet.failures[profile.name] = failure
        return None
