"""When the cuts are made: at once, or in steps with training in between; and training towards zero before."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from planish.compiler.coupling.groups import Coupling, Group
from planish.compiler.errors import UserError, closest
from planish.compiler.program import Program
from planish.passes.pruning.units import Weights
from planish.passes.training.settings import Training

CURVES = ("linear", "cubic")


@dataclass(frozen=True)
class Gradual:
    """Cut in ``steps``, each followed by ``training`` (one step: cut at once, then train).

    ``curve``: how much has gone after each: ``linear``, or ``cubic``, most of it early (AGP, arXiv:1710.01878).
    """

    steps: int = 3
    curve: str = "cubic"
    training: Training = field(default_factory=lambda: Training(epochs=1))

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise UserError(f"Give Gradual(steps=…) a whole number of at least 1, not {self.steps!r}.")
        if self.curve not in CURVES:
            raise UserError(f"Gradual has no curve {self.curve!r}{closest(str(self.curve), CURVES)}")

    def progress(self) -> tuple[float, ...]:
        """The share of the whole ratio that is reached after each step."""
        linear = [(step + 1) / self.steps for step in range(self.steps)]
        return tuple(linear if self.curve == "linear" else [1 - (1 - share) ** 3 for share in linear])


@dataclass(frozen=True)
class GroupLasso:
    """Train before the cut with ``strength`` times the norms of all units, so that some become small as a whole.

    The norm of a unit is over all that it owns in coupled tensors (arXiv:2301.12900), times the root of how many
    weights that are (arXiv:1608.03665).
    """

    strength: float = 1e-5
    training: Training = field(default_factory=lambda: Training(epochs=1))

    def __post_init__(self) -> None:
        if isinstance(self.strength, bool) or not isinstance(self.strength, (int, float)) or not self.strength > 0:
            raise UserError(f"Give GroupLasso(strength=…) a number above 0, not {self.strength!r}.")


class Penalty:
    """The group lasso of a Coupling as a loss term of the Program in training."""

    def __init__(self, coupling: Coupling, groups: list[Group], strength: float) -> None:
        self._weights, self._strength = Weights.of(coupling), strength
        self._roots = {group: self._weights.sums(group, torch.ones_like).sqrt() for group in groups}

    def __call__(self, program: Program) -> dict[str, Tensor]:
        live = Weights({name: program.graph_module.get_parameter(name) for name in self._weights.tensors})
        tiny = torch.finfo(torch.float32).tiny  # a unit that is zero has a gradient: 0
        norms = [(roots * (live.sums(group, torch.square) + tiny).sqrt()).sum() for group, roots in self._roots.items()]
        device = next(iter(live.tensors.values())).device
        return {"group lasso": self._strength * torch.stack(norms).sum().to(device, torch.float32)}
