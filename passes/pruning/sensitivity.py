"""How the metric falls as each group loses units on its own: measured once, kept in a file, and a guide for ratios."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from planish.compiler.contracts import Context
from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.groups import Coupling, Group, couple
from planish.compiler.errors import MissingDependency, UserError
from planish.compiler.options import plain
from planish.compiler.program import Program
from planish.compiler.report import write_atomically
from planish.passes.pruning.allocation import FINENESS
from planish.passes.pruning.selection import Search

if TYPE_CHECKING:
    from planish.passes.prune_channels import PruneChannels

SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Sensitivity:
    """The metric by group and share of its units that is gone; ``whole`` is that of the uncut Program."""

    whole: float
    groups: Mapping[str, Mapping[float, float]]
    identity: str
    """Digest of the Program, its weights and the criterion that it was measured with."""

    def save(self, path: Path) -> Path:
        plain = {
            "identity": self.identity,
            "whole": self.whole,
            "groups": {name: {str(share): metric for share, metric in of.items()} for name, of in self.groups.items()},
        }
        return write_atomically(path, json.dumps(plain, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Sensitivity:
        """Raises UserError for a file that cannot be read as one."""
        try:
            plain = json.loads(path.read_text())
            groups = {name: {float(share): float(m) for share, m in of.items()} for name, of in plain["groups"].items()}
            return cls(float(plain["whole"]), groups, str(plain["identity"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
            raise UserError(f"Give the path of a saved sensitivity: {path} cannot be read ({failure}).") from failure

    def share_for(self, name: str, drop: float) -> float:
        """The largest share of the group that costs at most ``drop`` of the metric, by interpolation."""
        of = self.groups.get(name)
        if not of:
            return 0.0
        shares = np.array([0.0, *sorted(of)])
        drops = np.maximum.accumulate([0.0, *(max(0.0, self.whole - of[share]) for share in sorted(of))])
        within = np.flatnonzero(drops <= drop)[-1]
        if within + 1 == len(shares):
            return float(shares[-1])
        step = (drop - drops[within]) / (drops[within + 1] - drops[within])
        return float(shares[within] + step * (shares[within + 1] - shares[within]))

    def wishes(self, groups: Sequence[Group]) -> tuple[int, Callable[[int], dict[Group, float]]]:
        """As ``allocation.local_wishes``: what every group keeps if in each step all lose what costs the same."""
        worst = max((self.whole - metric for of in self.groups.values() for metric in of.values()), default=0.0)

        def wishes(step: int) -> dict[Group, float]:
            drop = max(0.0, worst) * step / FINENESS
            return {group: group.width * (1 - self.share_for(group.name, drop)) for group in groups}

        return FINENESS, wishes

    def plot(self, path: Path) -> Path:
        """Write a picture of the kind that the suffix says, one line a group. Needs matplotlib (MissingDependency)."""
        try:
            from matplotlib.figure import Figure
        except ImportError as failure:
            raise MissingDependency("matplotlib", "plot") from failure
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots()
        for name, of in self.groups.items():
            shares = [0.0, *sorted(of)]
            axes.plot(shares, [self.whole, *(of[share] for share in shares[1:])], marker=".", label=name)
        axes.set_xlabel("share of the group's units removed")
        axes.set_ylabel("metric")
        figure.legend(loc="outside right upper", fontsize="x-small", ncols=1 + len(self.groups) // 30)
        figure.savefig(path)
        return path


def measure_sensitivity(
    options: PruneChannels, program: Program, context: Context, file: Path, shares: Sequence[float] = SHARES
) -> Sensitivity:
    """The compilation's metric with each group cut alone by ``shares`` of its units, the lowest scores of ``options``.

    What ``file`` has is not measured again; it is written after every group, so that a run that was killed continues.
    Raises UserError without a metric, and for a file that was measured on something else.
    """
    if context.metric is None:
        raise UserError(f"Pass metric=… to planish.compile: {options.name} measures sensitivity with it.")
    coupling = couple(program, context.coupling_rules)
    coupling.program.eval()
    identity = _identity(coupling, options)
    known = (
        Sensitivity.load(file) if file.exists() else Sensitivity(float(context.metric(coupling.program)), {}, identity)
    )
    if known.identity != identity:
        raise UserError(f"Remove {file} or name another file: it was measured on other weights or with other options.")
    groups = {name: dict(of) for name, of in known.groups.items()}
    scores = Search(options, coupling, context).scores()
    allocation = Search(options, coupling, context).allocation(scores)
    whole = {group: group.width for group in scores}
    for number, group in enumerate(scores):
        measured = groups.setdefault(group.name, {})
        for share in shares:
            kept = allocation.kept(whole | {group: (1 - share) * group.width})[group]
            actual = round(1 - kept / group.width, 6)
            if actual and actual not in measured:
                if context.progress is not None:
                    context.progress.say(f"sensitivity of {group.name}", number / len(scores))
                with torch.no_grad():
                    measured[actual] = float(context.metric(cut(coupling, allocation.removed({group: kept}))))
        Sensitivity(known.whole, groups, identity).save(file)
    return Sensitivity(known.whole, groups, identity)


def _identity(coupling: Coupling, options: PruneChannels) -> str:
    settings = f"{plain(options.criterion)} {options.granularity} {options.minimum_width} {options.most} {options.keep}"
    digest = hashlib.sha256(f"{coupling.program.graph_module.code}{settings}".encode())
    for name, tensor in sorted(coupling.program.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
