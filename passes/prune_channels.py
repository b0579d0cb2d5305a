"""Remove channels, heads and features: whole units of every tensor that they lie in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from planish.compiler.contracts import Context, Pass, Proposal, Situation, Stage
from planish.compiler.coupling.cut import Removed, cut, left_of_tensors
from planish.compiler.coupling.groups import Coupling, couple
from planish.compiler.errors import UserError, closest
from planish.compiler.program import Program
from planish.passes.pruning.criteria import CRITERIA, OwnCriterion
from planish.passes.pruning.gradients import has_data, rows_of
from planish.passes.pruning.measures import MEASURES
from planish.passes.pruning.names import check_names, keeping
from planish.passes.pruning.proposal import propose_channels
from planish.passes.pruning.reconstruct import reconstruct
from planish.passes.pruning.schedules import Gradual, GroupLasso, Penalty
from planish.passes.pruning.selection import select
from planish.passes.pruning.sensitivity import measure_sensitivity
from planish.passes.pruning.told import tell
from planish.passes.training.recover import recover, training_data

SCOPES = ("global", "local", "sensitivity")


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Removes the least important units of coupled channels, until a share of the cost is gone.

    1. ``compiler/coupling`` finds the groups: what has to go together, from the ops alone.
    2. ``criterion`` scores each unit of a group over all weights that it owns.
    3. ``allocation`` decides how many units each group loses, without cutting.
    4. ``cut`` removes them, and rewrites every size in the graph.
    5. ``reconstruct`` fits the weights of layers that read fewer channels to what they gave with all of them.

    ``ratio``: the share to remove, of ``of``: ``macs``, ``parameters``, or ``latency`` (estimated, of the target).
    ``criterion``: ``l1``, ``l2``, ``lamp``, ``fpgm``, ``batch-norm``, ``random``; with data ``taylor``, ``hessian``;
    or a function of (coupling, group) that returns one score for each unit.
    ``scope``: ``global`` ranks the units of all groups together, ``local`` takes the same share of every width,
    ``sensitivity`` takes what costs every group the same of the metric, as the file ``sensitivity`` says (JSON; it is
    measured first, with the compilation's metric, as far as it is missing).
    ``granularity``: what widths are multiples of: ``target`` (what the profile says runs fast), or a number; 1 for any.
    ``keep``: groups that stay whole, by name (``planish groups`` prints them), module or pattern (``"layer4.*"``).
    ``ratios``: group name or pattern -> share of its units to remove, instead of what is allocated.
    ``minimum_width``: narrower than this no axis becomes. ``most``: the largest share of its size that an axis loses.
    ``samples``: rows of data that a criterion with gradients reads.
    ``reconstruct``: rows of data that weights are fitted on where some is given (for training, else for calibration),
        up to whole batches; 0: weights stay as they are.
    ``before``: training towards zero before the first cut, ``GroupLasso(…)``.
    ``schedule``: cuts in steps with training after each, ``Gradual(…)``; None: one cut and no training.
    """

    name: ClassVar[str] = "prune-channels"
    stage: ClassVar[Stage] = Stage.STRUCTURE

    ratio: float = 0.5
    of: str = "macs"
    criterion: str | OwnCriterion = "l2"
    scope: str = "global"
    sensitivity: str | None = None
    granularity: str | int = "target"
    keep: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    minimum_width: int = 1
    most: float = 0.9
    samples: int = 128
    reconstruct: int = 64
    before: GroupLasso | None = None
    schedule: Gradual | None = None

    def __post_init__(self) -> None:
        _demand_share("ratio", self.ratio)
        _demand_share("most", self.most)
        if not isinstance(self.ratios, Mapping):
            raise UserError(f"Give ratios a dict of group names and shares, not {self.ratios!r}.")
        for pattern, share in self.ratios.items():
            _demand_share(f"ratios for {pattern!r}", share)
        for name, value, choices in (
            ("measure of", self.of, MEASURES), ("criterion", self.criterion, CRITERIA), ("scope", self.scope, SCOPES)
        ):  # fmt: skip
            if value not in choices and not (name == "criterion" and callable(value)):
                raise UserError(f"{self.name} has no {name} {value!r}{closest(str(value), choices)}")
        if isinstance(self.granularity, str) and self.granularity != "target":
            raise UserError(f'Give {self.name} granularity="target" or a number of channels, not {self.granularity!r}.')
        if (self.scope == "sensitivity") != (self.sensitivity is not None):
            raise UserError(f'Give {self.name} scope="sensitivity" and sensitivity="file.json" together.')
        if isinstance(self.keep, str):  # read letter by letter otherwise
            raise UserError(f"Give keep a tuple of names: ({self.keep!r},).")
        for name in ("granularity", "minimum_width", "samples"):
            value = getattr(self, name)
            if not isinstance(value, str) and not _is_whole(value, 1):
                raise UserError(f"Give {self.name} {name} a whole number of at least 1, not {value!r}.")
        if not _is_whole(self.reconstruct, 0):
            raise UserError(f"Give {self.name} reconstruct a number of rows of at least 0, not {self.reconstruct!r}.")

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        return propose_channels(cls, situation)

    def run(self, program: Program, context: Context) -> Program:
        if self.before is not None or self.schedule is not None:
            training_data(context)  # says now that there is none
        if self.before is not None:
            program = self._towards_zero(program, self.before, context)
        known = None
        if self.sensitivity is not None:
            known = measure_sensitivity(self, program, context, Path(self.sensitivity))
        start = None
        for step, progress in enumerate(self.schedule.progress() if self.schedule is not None else (1.0,)):
            coupling = self._coupled(program, context)
            selection = select(self, coupling, context, progress, start, known)
            start = selection.start
            program = cut(coupling, selection.removed)
            self._reconstruct(program, coupling, selection.removed, context)
            if self.schedule is not None:
                program = recover(program, context, self.schedule.training.part(f"step-{step}")).program
        tell(selection, self, context)
        return program

    def _reconstruct(self, program: Program, coupling: Coupling, removed: Removed, context: Context) -> None:
        batches = [*rows_of(program, context, self.reconstruct)] if self.reconstruct and has_data(context) else []
        if len(batches) < 2:  # one to fit to, one to see whether that helps
            return
        fitted = reconstruct(program, coupling.program, left_of_tensors(coupling, removed), batches)
        if fitted:
            before, after = (sum(errors) / len(fitted) for errors in zip(*fitted, strict=True))
            context.notes.append(
                f"Fitted {len(fitted)} layers to what they gave with all channels: on rows held out they were "
                f"off by {before:.0%} of its mean square before, {after:.0%} after."
            )

    def _coupled(self, program: Program, context: Context) -> Coupling:
        coupling = couple(program, context.coupling_rules)
        coupling.program.eval()
        return coupling

    def _towards_zero(self, program: Program, lasso: GroupLasso, context: Context) -> Program:
        coupling = self._coupled(program, context)
        check_names(self, coupling)
        groups = [group for group in coupling.groups if keeping(self.keep, group) is None]
        if not groups:
            return program
        penalty = Penalty(coupling, groups, lasso.strength)
        return recover(coupling.program, context, lasso.training.part("before"), penalty=penalty).program


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _demand_share(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 <= value < 1):
        raise UserError(f"Give prune-channels {name} a share of at least 0 and below 1, not {value!r}.")
