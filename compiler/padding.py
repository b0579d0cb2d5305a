"""What a padding node adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
PADS = (aten.pad.default, aten.constant_pad_nd.default)


def zero_padding(node: Any) -> list[int] | None:
    """How many zeros ``node`` adds: ahead and behind, from the last dimension to the first.

    None if it is anything but a padding with a known number of zeros.
    """
    if not isinstance(node, fx.Node) or node.target not in PADS:
        return None
    arguments = dict(zip(_PARAMETERS[node.target], node.args, strict=False)) | node.kwargs
    amounts: Any = arguments["pad"]
    known = all(isinstance(amount, int) and amount >= 0 for amount in amounts)
    zeros = arguments.get("mode", "constant") == "constant" and arguments.get("value") in (None, 0)
    return [*amounts] if known and zeros else None


_PARAMETERS: dict[Any, tuple[str, ...]] = {
    pad: tuple(argument.name for argument in pad._schema.arguments) for pad in PADS
}
