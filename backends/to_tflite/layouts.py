"""How the inputs lie in the file: channels last where what reads them wants it so."""

from __future__ import annotations

from torch import fx

from planish.backends.to_tflite.values import Order, channels_last, plain
from planish.compiler.program import Program


def input_orders(program: Program, wants_channels_last: frozenset[object]) -> dict[fx.Node, Order]:
    """The order of each placeholder: channels last if the first operators that are bound to a layout want that.

    What a value meets on its way there (a normalization of pixels, a padding) runs in any order.
    """
    orders = {}
    for node in program.placeholders:
        rank = getattr(node.meta["val"], "ndim", 0)
        image = rank in (4, 5) and _meets(node, rank, wants_channels_last)
        orders[node] = channels_last(rank) if image else plain(rank)
    return orders


def _meets(node: fx.Node, rank: int, wanted: frozenset[object]) -> bool:
    seen, waiting = {node}, [node]
    while waiting:
        for user in waiting.pop().users:
            if user.target in wanted:
                return True
            value = user.meta.get("val")
            if user not in seen and getattr(value, "ndim", -1) == rank:
                seen.add(user)
                waiting.append(user)
    return False
