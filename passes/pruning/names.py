"""Groups by the names that a user writes: of modules, of groups, or patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from planish.compiler.coupling.groups import Coupling, Group
from planish.compiler.errors import UserError, closest

if TYPE_CHECKING:
    from planish.passes.prune_channels import PruneChannels


def keeping(patterns: Iterable[str], group: Group) -> str | None:
    """The first pattern that names the group, or a module that it lies in."""
    names = (group.name, *group.modules)
    return next((pattern for pattern in patterns if any(fits(name, pattern) for name in names)), None)


def naming(patterns: Iterable[str], group: Group) -> str | None:
    """The first pattern that names the group itself."""
    return next((pattern for pattern in patterns if fits(group.name, pattern)), None)


def fits(name: str, pattern: str) -> bool:
    """Whether ``name`` fits the pattern, or lies in the module of that name."""
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def check_names(options: PruneChannels, coupling: Coupling) -> None:
    """Raise UserError for a name in ``keep`` or ``ratios`` that nothing has."""
    groups = {group.name for group in coupling.groups}
    _demand("keep", options.keep, groups | _modules(coupling), "module or group")
    _demand("ratios", [*options.ratios], groups, "group")


def _demand(option: str, names: Sequence[str], known: set[str], what: str) -> None:
    for name in names:
        if not any(fits(each, name) for each in known):
            raise UserError(f"{option} names {name!r}, which is no {what} of the model{closest(name, known)}")


def _modules(coupling: Coupling) -> set[str]:
    """All modules that own a tensor, and those around them."""
    owners = {name.rpartition(".")[0] for name in coupling.program.state_dict()}
    return {".".join(name.split(".")[:depth]) for name in owners for depth in range(1, name.count(".") + 2)}
