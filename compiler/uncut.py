"""What of a Program cannot be cut, and why: one line a reason."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from planish.compiler.coupling.groups import Coupling
from planish.compiler.program import op_name


@dataclass(frozen=True)
class Uncut:
    """Axes of parameters that stay for one reason."""

    why: str
    op: str
    """The op that asks for it; "" where none does."""
    tensors: tuple[str, ...]
    """Each once, however many of its axes stay."""
    nodes: tuple[fx.Node, ...]


def find_uncut(coupling: Coupling) -> list[Uncut]:
    """The axes that cannot be cut, by reason and op, in the order of the graph."""
    tensors: dict[tuple[str, str], dict[str, None]] = {}
    nodes: dict[tuple[str, str], dict[fx.Node, None]] = {}
    for fixed in coupling.fixed:
        node = fixed.reason.node
        key = fixed.reason.why, op_name(node) if node is not None and node.op == "call_function" else ""
        tensors.setdefault(key, {})[fixed.tensor] = None
        if node is not None:
            nodes.setdefault(key, {})[node] = None
    return [Uncut(*key, tuple(named), tuple(nodes.get(key, ()))) for key, named in tensors.items()]
