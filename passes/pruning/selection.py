"""Chooses the units that go: limits, scores, and the search for the share that was asked for."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from planish.compiler.alignment import Alignment, asked_alignment, find_axes
from planish.compiler.contracts import Context
from planish.compiler.coupling.groups import Coupling, Group
from planish.compiler.errors import UserError
from planish.compiler.options import plain
from planish.compiler.program import op_name, source_module
from planish.compiler.widths import Widths
from planish.passes.pruning.allocation import Allocation, Removed, global_wishes, local_wishes, smallest
from planish.passes.pruning.criteria import CRITERIA, Criterion, Evidence, Scores, own
from planish.passes.pruning.gradients import gradients
from planish.passes.pruning.measures import MEASURES, Measure, measure
from planish.passes.pruning.names import check_names, keeping, naming

if TYPE_CHECKING:
    from planish.passes.prune_channels import PruneChannels
    from planish.passes.pruning.sensitivity import Sensitivity

WORTH = 0.05
"""A group stays whole if its cut saves less than this share of what groups save on average."""


Place = tuple[tuple[str, int], ...]
"""The tensors and axes that a group lies in: what tells it apart in Programs cut from each other. Names shift."""


@dataclass(frozen=True)
class Start:
    """The Program before the first step of a schedule."""

    cost: float
    """What the measure says of it."""
    widths: Mapping[Place, Sequence[int]]
    """Of the groups that the Program has now, in their order where several are nested in one place."""


def place(group: Group) -> Place:
    return tuple((member.tensor, member.axis) for member in group.members)


def started(cost: float, first: Mapping[Group, int], removed: Mapping[Group, Sequence[int]]) -> Start:
    """``first`` as the Program without ``removed`` has to know it: a group that one unit is left of is none there."""
    widths: dict[Place, list[int]] = {}
    for group, width in first.items():
        if group.width - len(removed.get(group, ())) > 1:
            widths.setdefault(place(group), []).append(width)
    return Start(cost, widths)


@dataclass(frozen=True)
class Selection:
    """What goes, what stays and why."""

    coupling: Coupling
    removed: Removed
    whole: Mapping[Group, str]
    """Groups that lose nothing, with the reason."""
    first: Mapping[Group, int]
    """How wide each group was before the first step of a schedule."""
    multiple: int
    start: Start
    """For the next step."""
    after: float
    """What the measure says of what is left."""


@dataclass
class Search:
    """One selection while it is made."""

    options: PruneChannels
    coupling: Coupling
    context: Context
    progress: float = 1.0
    start: Start | None = None
    whole: dict[Group, str] = field(default_factory=dict)

    @functools.cached_property
    def multiple(self) -> int:
        wanted = self.options.granularity
        return wanted if isinstance(wanted, int) else asked_alignment(self.context.profile, self.context.scheme)

    @functools.cached_property
    def first(self) -> dict[Group, int]:
        widths = {} if self.start is None else {at: iter(of) for at, of in self.start.widths.items()}
        return {group: next(widths.get(place(group), iter(())), group.width) for group in self.coupling.groups}

    @functools.cached_property
    def widths(self) -> Widths:
        return Widths(self.coupling)

    @functools.cached_property
    def alignment(self) -> Alignment:
        shrunk = {atom: group.width / first for group, first in self.first.items() for atom in group.units}
        return Alignment(find_axes(self.widths), self.multiple, self.options.minimum_width, shrunk)

    @functools.cached_property
    def cost(self) -> Measure:
        return measure(self.options.of, self.widths, self.context.profile, self.context.scheme, self.multiple)

    @functools.cached_property
    def criterion(self) -> Criterion:
        chosen = self.options.criterion
        return own(chosen) if callable(chosen) else CRITERIA[chosen]

    def scores(self) -> Scores:
        """Of the groups that may be cut."""
        read = functools.partial(gradients, self.coupling.program, self.context, self.options.samples)
        scores = self.criterion.score(self.coupling, Evidence(read, self.context.seed))
        for group in self.coupling.groups:
            pattern = keeping(self.options.keep, group)
            if pattern is not None:
                self.whole[group] = f"keep names {pattern!r}"
            elif group not in scores:
                self.whole[group] = f"the criterion {plain(self.options.criterion)} ranks none of its units"
        return {group: of for group, of in scores.items() if group not in self.whole}

    def allocation(self, scores: Scores) -> Allocation:
        named = {group: naming(self.options.ratios, group) for group in scores}
        wishes = {
            group: (1 - self.progress * self.options.ratios[name]) * self.first[group]
            for group, name in named.items()
            if name is not None
        }
        return Allocation(scores, self.alignment, wishes, 1 - self.options.most)

    def savings(self, scores: Scores) -> dict[Group, float]:
        """What a unit saves, of the groups that can become narrower and save something by it."""
        allocation = self.allocation(scores)
        saved = {
            group: self.cost.saved(group, allocation.left({group: count})) / (group.width - count)
            for group, count in allocation.narrowest().items()
            if count < group.width
        }
        enough = WORTH * sum(saved[group] * group.width for group in saved) / max(1, len(saved))
        for group in scores:
            if group not in saved:
                self.whole[group] = f"no narrower width is allowed (multiples of {self.multiple})"
            elif saved[group] * group.width < enough and group not in allocation.fixed:
                self.whole[group] = f"its cut would save next to nothing of the {MEASURES[self.options.of]}"
        return {group: of for group, of in saved.items() if group not in self.whole}

    def selection(self, cost: float, removed: Removed, after: float) -> Selection:
        start = started(cost, self.first, removed)
        return Selection(self.coupling, removed, self.whole, self.first, self.multiple, start, after)


def select(
    options: PruneChannels,
    coupling: Coupling,
    context: Context,
    progress: float = 1.0,
    start: Start | None = None,
    sensitivity: Sensitivity | None = None,
) -> Selection:
    """The units to remove from ``coupling``, where ``progress`` (0..1) of the whole ratio is to be reached.

    With ``sensitivity`` every group loses what costs the same of the metric.

    Raises UserError for unknown names, for missing data, and for a ratio that is out of reach.
    """
    check_names(options, coupling)
    search = Search(options, coupling, context, progress, start)
    scores = search.scores()
    saved = search.savings(scores)
    scores = {group: scores[group] for group in saved}
    cost = search.cost({})
    original = cost if start is None else start.cost
    bound = (1 - progress * options.ratio) * original
    if not scores:
        if cost > bound or original == cost:
            raise UserError(_nothing(options, coupling, search.whole))
        return search.selection(original, {}, cost)
    allocation = search.allocation(scores)
    if options.scope == "local":
        highest, wishes = local_wishes([*scores], search.alignment)
    elif sensitivity is not None:
        highest, wishes = sensitivity.wishes([*scores])
    else:
        highest, wishes = global_wishes(_keys(scores, search.criterion, saved))

    def after(step: int) -> float:
        return search.cost(allocation.left(allocation.kept(wishes(step))))

    step = smallest(lambda step: after(step) <= bound, highest)
    if step is None:
        raise UserError(_out_of_reach(search, 1 - after(highest) / original))
    return search.selection(original, allocation.removed(allocation.kept(wishes(step))), after(step))


def _keys(scores: Scores, criterion: Criterion, saved: Mapping[Group, float]) -> Scores:
    """Scores that compare between groups. A loss is weighed against what the cut saves (HALP, arXiv:2110.10811)."""
    if criterion.kind == "relative":
        return {group: of / of.mean().clamp(min=torch.finfo(of.dtype).tiny) for group, of in scores.items()}
    if criterion.kind == "loss":
        return {group: of / saved[group] for group, of in scores.items()}
    return scores


def _nothing(options: PruneChannels, coupling: Coupling, whole: Mapping[Group, str]) -> str:
    reasons = [f"{group.name}: {why}" for group, why in whole.items()]
    for node, why in coupling.not_understood.items():
        reasons.append(f"{op_name(node)} in {source_module(node) or 'forward'}: {why}")
    reasons += [f"{fixed.tensor}: {fixed.reason.why}" for fixed in coupling.fixed]
    told = f" ({'; '.join(reasons[:3])}{' …' if len(reasons) > 3 else ''})" if reasons else ""
    return f"Leave {options.name} out, or change its limits: no channel of this model can be removed{told}."


def _out_of_reach(search: Search, reached: float) -> str:
    options = search.options
    limits = [f"no axis loses more than {options.most:.0%} (most)"]
    limits += [f"widths are multiples of {search.multiple} (granularity)"] if search.multiple > 1 else []
    limits += [f"{len(search.whole)} of {len(search.coupling.groups)} groups stay whole"] if search.whole else []
    return (
        f"Lower the ratio of {options.name}, or loosen its limits: {reached:.1%} of the {MEASURES[options.of]} is all "
        f"that can go, not {search.progress * options.ratio:.1%}, where {', '.join(limits)}."
    )
