"""Tells the Report what was cut, what was not, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from planish.compiler.contracts import Context
from planish.compiler.coupling.groups import Coupling
from planish.compiler.options import plain
from planish.compiler.uncut import find_uncut
from planish.passes.pruning.measures import MEASURES
from planish.passes.pruning.selection import Selection

if TYPE_CHECKING:
    from planish.passes.prune_channels import PruneChannels


def tell(selection: Selection, options: PruneChannels, context: Context) -> None:
    """A decision for each group, for each reason that keeps axes as they are, and for each op without a rule."""
    coupling = selection.coupling
    readers = _readers(coupling)
    for group in coupling.groups:
        gone = len(selection.removed.get(group, ()))
        reason = f"the lowest scores go ({plain(options.criterion)}, {options.scope})"
        if not gone:
            reason = selection.whole.get(group, "its units score higher than those that go")
        before = selection.first[group]
        outcome = f"{before} -> {group.width - gone}" if group.width - gone < before else f"{before}"
        context.decide(readers[group.members[0].tensor], outcome, reason)
    for uncut in find_uncut(coupling):
        first = uncut.nodes[0] if uncut.nodes else readers[uncut.tensors[0]]
        context.decide(first, "stays", f"{uncut.why}: {len(uncut.tensors)} tensors, {uncut.tensors[0]} is the first")
    for node, why in coupling.not_understood.items():
        context.decide(node, "stays", f"not understood: {why}")
    share = 1 - selection.after / selection.start.cost
    aligned = f"; widths are multiples of {selection.multiple}" if selection.multiple > 1 else ""
    context.notes.append(f"Removed {share:.1%} of the {MEASURES[options.of]}{aligned}.")


def _readers(coupling: Coupling) -> dict[str, fx.Node]:
    """The first node that computes with each tensor; the node that reads it, where none does."""
    return {
        str(node.target): next(iter(node.users), node)
        for node in reversed(coupling.program.graph.nodes)
        if node.op == "get_attr"
    }
