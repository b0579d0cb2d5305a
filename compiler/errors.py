"""What can go wrong, split by whose turn it is.

The first sentence of every message tells what to do. ``PlanishError`` catches all of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlanishError(Exception):
    """Base of every error that planish raises on purpose."""


class UserError(PlanishError):
    """The model, the data, the target or an option does not fit: the caller's turn."""


class MissingDependency(PlanishError):
    """A vendor library is not installed; the message names the extra that brings it."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"Install {library} with: pip install 'planish[{extra}]'")
        self.library, self.extra = library, extra


class PluginError(PlanishError):
    """A third-party plugin raised, or claims a name that another one owns."""


class CompilationError(PlanishError):
    """A pass or a backend failed on a valid Program.

    The fields say where: ``component`` is the pass or backend, ``node`` the FX node, ``module``
    the source module it came from, ``passes_before`` what had already run.
    """

    def __init__(
        self,
        message: str,
        *,
        component: str = "",
        node: str = "",
        module: str = "",
        passes_before: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.component, self.node, self.module = component, node, module
        self.passes_before = passes_before

    def __str__(self) -> str:
        parts = (
            f"in {self.component}" if self.component else "",
            f"at node {self.node}" if self.node else "",
            f"from module {self.module}" if self.module else "",
            f"after {', '.join(self.passes_before)}" if self.passes_before else "",
        )
        where = ", ".join(part for part in parts if part)
        return f"{super().__str__()} ({where})" if where else super().__str__()


class PassError(CompilationError):
    """A pass could not rewrite the Program."""


class LoweringError(CompilationError):
    """A backend could not turn the Program into an Artifact."""


class VerificationError(PlanishError):
    """An invariant of planish does not hold: a bug of planish or of a plugin, not of the caller."""


def closest(name: str, choices: Iterable[str]) -> str:
    """``'resnet18'`` among known names -> ``"; did you mean 'resnet-18'?"``, else the choices."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(repr(match) for match in near) + "?"
    return "; known are " + ", ".join(known) if known else ""
