"""Source modules that the user names in options of passes: by name, with all that is inside, or by pattern."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from planish.compiler.errors import UserError, closest
from planish.compiler.program import Program, source_module


def named(module: str, patterns: Sequence[str]) -> bool:
    """Whether one of ``patterns`` means ``module`` or one around it."""
    return any(fnmatch.fnmatch(module, pattern) or module.startswith(f"{pattern}.") for pattern in patterns)


def demand_names(option: str, patterns: Sequence[str]) -> None:
    """Raise UserError if ``patterns`` is one string, which would be read letter by letter."""
    if isinstance(patterns, str):
        raise UserError(f"Give {option} a tuple of module names: ({patterns!r},).")


def demand_known(option: str, patterns: Sequence[str], program: Program) -> None:
    """Raise UserError for a name that is no module of the model, with the closest ones."""
    modules = {source_module(node) for node in program.calls()}
    known = {".".join(name.split(".")[:depth]) for name in modules for depth in range(1, name.count(".") + 2)}
    for name in patterns:
        if not set(name) & set("*?[") and name not in known:
            raise UserError(f"{option} names {name!r}, which is no module of the model{closest(name, known)}")
