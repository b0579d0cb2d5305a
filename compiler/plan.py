"""The Plan: the ordered passes for one Program, device and Budget, each with the reason why."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from planish.compiler.contracts import Pass, Situation
from planish.compiler.errors import UserError
from planish.compiler.report import write_atomically

REQUESTED = "Requested."


@dataclass(frozen=True)
class PlannedPass:
    """One step of a Plan. ``requested`` ones are kept even where they do not pay (with the figures)."""

    compression: Pass
    reason: str
    requested: bool = False


@dataclass(frozen=True)
class Plan:
    """What will be done, and what was left out and why. Print it, save it, edit it, replay it."""

    steps: tuple[PlannedPass, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[PlannedPass]:
        return iter(self.steps)

    def __str__(self) -> str:
        lines = [f"{number}. {step.compression}: {step.reason}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([*lines, *(f"-  {name} left out: {reason}" for name, reason in self.left_out.items())])

    def save(self, path: str | Path) -> Path:
        """Write the plan as TOML: one ``[[pass]]`` table a step, its options as keys."""
        tables = [
            {
                "name": step.compression.name,
                "reason": step.reason,
                "requested": step.requested,
                "options": step.compression.options(),
            }
            for step in self.steps
        ]  # fmt: skip
        return write_atomically(Path(path), tomli_w.dumps({"pass": tables, "left_out": dict(self.left_out)}))

    @classmethod
    def load(cls, path: str | Path, find_pass: Callable[[str], type[Pass]] | None = None) -> Plan:
        """Read a saved (or edited) plan. Raises UserError naming what it does not know."""
        if find_pass is None:
            from planish.compiler.plugins import registry

            find_pass = registry().find_pass
        try:
            data = tomllib.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as failure:
            raise UserError(f"Give the path of a plan in TOML: {path} cannot be read ({failure}).") from failure
        entries = data.get("pass", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"Write the passes of {path} as [[pass]] tables.")
        return cls(tuple(_step(entry, find_pass) for entry in entries), data.get("left_out", {}))


def _step(entry: Mapping[str, Any], find_pass: Callable[[str], type[Pass]]) -> PlannedPass:
    if "name" not in entry:
        raise UserError("Give every [[pass]] of a plan its name.")
    if not isinstance(entry.get("options", {}), dict):
        raise UserError(f"Write the options of {entry['name']} as a table: options = {{ … }}.")
    compression = find_pass(entry["name"]).from_options(_with_passes(entry.get("options", {}), find_pass))
    return PlannedPass(compression, entry.get("reason", REQUESTED), entry.get("requested", False))


def _with_passes(value: Any, find_pass: Callable[[str], type[Pass]]) -> Any:
    """``value`` with the passes in it, tables that have a ``pass``, made again: a pass may hold passes."""
    if isinstance(value, list):
        return [_with_passes(item, find_pass) for item in value]
    if not isinstance(value, dict):
        return value
    inner = {name: _with_passes(item, find_pass) for name, item in value.items()}
    name = inner.pop("pass", None)
    return inner if name is None else find_pass(name).from_options(inner)


def make_plan(situation: Situation, known: Iterable[type[Pass]]) -> Plan:
    """Ask every known pass whether it pays here; those that do run in the order of their stages."""
    steps: list[PlannedPass] = []
    left_out: dict[str, str] = {}
    for kind in sorted(known, key=lambda kind: (kind.stage, kind.name)):
        proposal = kind.propose(replace(situation, planned=tuple(step.compression for step in steps)))
        if proposal is None:
            continue
        if proposal.compression is None:
            left_out[kind.name] = proposal.reason
        else:
            steps = [step for step in steps if step.compression not in proposal.instead_of]
            steps.append(PlannedPass(proposal.compression, proposal.reason))
    return Plan(tuple(steps), left_out)


def as_plan(passes: Plan | Pass | Iterable[Pass]) -> Plan:
    """What the user passed as ``passes=``: a plan is replayed, a list is kept in its order."""
    if isinstance(passes, Pass):
        passes = [passes]
    if isinstance(passes, Plan):
        return passes
    if not isinstance(passes, Iterable):
        raise UserError(f"Pass a Plan or a list of passes in passes=, not {passes!r}.")
    listed = list(passes)
    for item in listed:
        if not isinstance(item, Pass):
            raise UserError(f"Pass instances of passes in passes=, such as QuantizeInt8(); got {item!r}.")
    return Plan(tuple(PlannedPass(item, REQUESTED, requested=True) for item in listed))
