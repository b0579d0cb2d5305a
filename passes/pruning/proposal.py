"""Whether removing channels pays: where training wins back what it costs, or where the budget leaves no choice."""

from __future__ import annotations

from collections.abc import Callable

from planish.compiler.alignment import asked_alignment
from planish.compiler.contracts import Pass, Proposal, Situation
from planish.compiler.coupling.groups import couple
from planish.compiler.widths import Widths
from planish.passes.pruning.measures import EstimatedLatency

MOST = 0.8
"""A larger share than this nobody asks of pruning: little is left to train."""


def propose(make: Callable[..., Pass], situation: Situation) -> Proposal:
    """``make`` builds the pass from ``ratio``, ``of`` and ``criterion``: with labels, the loss ranks units."""
    widths = Widths(couple(situation.program, situation.coupling_rules))
    if not widths.coupling.groups:
        return Proposal(None, "No channel of this model can be removed.")
    demanded = _latency(widths, situation) or _size(widths, situation)
    if demanded is None:
        if situation.trains:
            return Proposal(
                make(criterion="taylor"), "Fewer channels are fewer MACs; training wins back what they cost."
            )
        return Proposal(None, "Removing channels costs accuracy, and there is no training data to win it back with.")
    of, ratio, told = demanded
    if ratio > MOST:
        return Proposal(None, f"{told}: {ratio:.0%} less, which removing channels does not reach.")
    if situation.trains:
        return Proposal(make(of=of, ratio=ratio, criterion="taylor"), f"{told}: {ratio:.0%} has to go.")
    lost = "without training data, accuracy will be lost"
    return Proposal(make(of=of, ratio=ratio), f"{told}: {ratio:.0%} has to go; {lost}.")


def _latency(widths: Widths, situation: Situation) -> tuple[str, float, str] | None:
    bound = situation.budget.latency_ms
    if bound is None:
        return None
    multiple = asked_alignment(situation.profile, situation.scheme)
    estimate = 1e3 * EstimatedLatency(widths, situation.profile, situation.scheme, multiple)({})
    if estimate <= bound:
        return None
    return "latency", round(1 - bound / estimate, 3), f"The budget is {bound:g} ms, the estimate {estimate:.3g} ms"


def _size(widths: Widths, situation: Situation) -> tuple[str, float, str] | None:
    bound = situation.budget.size_mb
    if bound is None:
        return None
    size = widths.parameters({}) * (4 if situation.scheme is None else 1) / 1e6
    if size <= bound:
        return None
    return "parameters", round(1 - bound / size, 3), f"The budget is {bound:g} MB, the weights take {size:.3g} MB"
