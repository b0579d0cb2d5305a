"""Whether removing channels or blocks pays: where training wins back what it costs, or the budget leaves no choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from planish.compiler.alignment import Alignment, asked_alignment, find_axes
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context, Pass, Proposal, Situation
from planish.compiler.coupling.dims import Dim
from planish.compiler.coupling.groups import couple
from planish.compiler.widths import Widths
from planish.passes.pruning.allocation import Allocation
from planish.passes.pruning.blocks import find_blocks
from planish.passes.pruning.measures import MEASURES, EstimatedLatency, costs_of_nodes
from planish.passes.pruning.selection import Search

if TYPE_CHECKING:
    from planish.passes.prune_channels import PruneChannels

MOST = 0.8
"""A larger share than this nobody asks of pruning: little is left to train."""
MODEST = 0.6
"""Of what could go at all, so much may go where nothing demands more."""


def propose_channels(make: Callable[..., PruneChannels], situation: Situation) -> Proposal:
    """``make`` builds the pass from ``ratio``, ``of`` and ``criterion``: with labels, the loss ranks units."""
    widths = Widths(couple(situation.program, situation.coupling_rules))
    if not widths.coupling.groups:
        return Proposal(None, "No channel of this model can be removed.")
    latency = _latency(widths, situation)
    demanded = _by_width(latency) or _size(widths, situation)
    if demanded is not None:
        return _as_demanded(make, widths, situation, *demanded)
    if latency is not None:
        return Proposal(None, f"{latency.told}: dropping blocks is enough.")
    if not situation.trains:
        return Proposal(None, "Removing channels costs accuracy, and there is no training data to win it back with.")
    options = make(criterion="taylor")
    reached = _share_of_channels(options, widths, situation)
    if not reached:
        return Proposal(None, _fixed(widths, situation))
    modest = make(criterion="taylor", ratio=min(options.ratio, round(MODEST * reached, 2)))
    return Proposal(modest, "Fewer channels are fewer MACs; training wins back what they cost.")


def _as_demanded(
    make: Callable[..., PruneChannels], widths: Widths, situation: Situation, of: str, ratio: float, told: str
) -> Proposal:
    options = make(of=of, ratio=min(ratio, MOST), criterion="taylor" if situation.trains else "l2")
    reached = min(MOST, _share_of_channels(options, widths, situation))
    if not reached:
        return Proposal(None, f"{told}. {_fixed(widths, situation)}")
    if ratio > reached:
        most = f"removing channels reaches {reached:.0%} of the {MEASURES[of]} at most"
        return Proposal(None, f"{told}: {ratio:.0%} less, and {most}.")
    lost = "" if situation.trains else "; without training data, accuracy will be lost"
    return Proposal(options, f"{told}: {ratio:.0%} has to go{lost}.")


def _fixed(widths: Widths, situation: Situation) -> str:
    multiple = asked_alignment(situation.profile, situation.scheme)
    return f"No narrower width of a layer would run faster (multiples of {multiple}), or save anything."


def _share_of_channels(options: PruneChannels, widths: Widths, situation: Situation) -> float:
    """The largest share that ``options`` could ask for, whatever units matter."""
    context = Context(situation.profile, situation.scheme, Calibration([], "drawn"))
    search = Search(options, widths.coupling, context)
    saved = search.savings({group: torch.ones(group.width) for group in widths.coupling.groups})
    allocation = search.allocation({group: torch.ones(group.width) for group in saved})
    return 1 - search.cost(allocation.left(allocation.narrowest())) / search.cost({})


def propose_blocks(make: Callable[..., Pass], situation: Situation) -> Proposal | None:
    """``make`` builds the pass from ``ratio`` and ``of``. Without training data nothing wins back a whole block."""
    if situation.budget.latency_ms is None or not situation.trains:
        return None
    latency = _latency(Widths(couple(situation.program, situation.coupling_rules)), situation)
    if latency is None or not latency.depth:
        return None
    half = f"half of all channels leave {latency.halved:.3g} ms"
    return Proposal(make(of="latency", ratio=latency.depth), f"{latency.told}, and {half}: blocks have to go as well.")


@dataclass(frozen=True)
class _Latency:
    """What has to go for a latency: of the estimate the share ``depth`` by blocks, then ``width`` of the rest."""

    told: str
    halved: float
    """The estimate with half of all channels, in ms."""
    depth: float
    width: float


def _latency(widths: Widths, situation: Situation) -> _Latency | None:
    """Small layers take as long with half of their channels, so what halving does not reach, blocks have to give."""
    bound = situation.budget.latency_ms
    if bound is None:
        return None
    multiple = asked_alignment(situation.profile, situation.scheme)
    seconds = EstimatedLatency(widths, situation.profile, situation.scheme, multiple)
    whole, halved = (1e3 * seconds(left) for left in ({}, _halved(widths, multiple)))
    if whole <= bound:
        return None
    told = f"The budget is {bound:g} ms, the estimate {whole:.3g} ms"
    missing = 1 - bound / halved if situation.trains else 0.0
    depth = round(min(missing, MOST * _share_of_blocks(widths, situation)), 3) if missing > 0 else 0.0
    return _Latency(told, halved, depth, round(1 - bound / ((1 - depth) * whole), 3))


def _halved(widths: Widths, multiple: int) -> dict[Dim, int]:
    """What is left of atoms with half of all units, as nearly as aligned widths allow."""
    groups = widths.coupling.groups
    alignment = Alignment(find_axes(widths), multiple)
    allocation = Allocation({group: torch.ones(group.width) for group in groups}, alignment, {}, 0.0)
    return allocation.left(allocation.kept({group: group.width / 2 for group in groups}))


def _share_of_blocks(widths: Widths, situation: Situation) -> float:
    """How much of the estimated latency lies in blocks that can be dropped."""
    cost = costs_of_nodes("latency", widths, situation.profile, situation.scheme)
    inside = {node for block in find_blocks(widths.coupling) for node in block.inside}
    return sum(cost.get(node, 0.0) for node in inside) / sum(cost.values())


def _by_width(latency: _Latency | None) -> tuple[str, float, str] | None:
    return None if latency is None or latency.width <= 0 else ("latency", latency.width, latency.told)


def _size(widths: Widths, situation: Situation) -> tuple[str, float, str] | None:
    bound = situation.budget.size_mb
    if bound is None:
        return None
    size = widths.parameters({}) * (4 if situation.scheme is None else 1) / 1e6
    if size <= bound:
        return None
    return "parameters", round(1 - bound / size, 3), f"The budget is {bound:g} MB, the weights take {size:.3g} MB"
