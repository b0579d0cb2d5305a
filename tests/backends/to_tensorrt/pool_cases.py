"""Max pools behind integers whose values are quantized again beside the convolution that reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.backends.to_tensorrt.graphs import Case, Graph, conv, image

NO_OPS: dict[str, Callable[[Graph, str], str]] = {
    "a Slice of everything": lambda g, x: g.op("Slice", x, g.ints(0, -99), g.ints(99, 1 << 40), g.ints(2, 3)),
    "a Transpose that changes nothing": lambda g, x: g.op("Transpose", x, perm=[0, 1, 2, 3]),
    "a Reshape to the same": lambda g, x: g.op("Reshape", x, g.ints(0, 0, 0, 0)),
    "a Tile of one": lambda g, x: g.op("Tile", x, g.ints(1, 1, 1, 1)),
    "an Expand to the same": lambda g, x: g.op("Expand", x, g.ints(1, 1, 1)),
    "a Concat of one": lambda g, x: g.op("Concat", x, axis=1),
    "a Split into one": lambda g, x: g.op("Split", x, axis=1),
}
"""What the builder drops."""
NEARLY_NO_OPS: dict[str, Callable[[Graph, str], str]] = {
    "a Slice from end to start": lambda g, x: g.op("Slice", x, g.ints(-1), g.ints(-99), g.ints(2), g.ints(-1)),
    "a Gather of everything": lambda g, x: g.op("Gather", x, g.ints(*range(8)), axis=2),
    "a Reshape": lambda g, x: g.op("Reshape", x, g.ints(1, 32, 4, 16)),
    "two Negs": lambda g, x: g.op("Neg", g.op("Neg", x)),
}
"""What it does not drop."""


def _moved(g: Graph, kind: str, x: str) -> str:
    """An operator that moves or chooses values of [1, 32, h, w]."""
    if change := {**NO_OPS, **NEARLY_NO_OPS}.get(kind):
        return change(g, x)
    inputs: dict[str, list[str]] = {
        "Expand": [g.ints(2, 1, 1, 1)], "Gather": [g.ints(0, 1, 2)], "Slice": [g.ints(1), g.ints(4), g.ints(2)],
        "Tile": [g.ints(1, 1, 2, 1)], "ReduceMax": [g.ints(2)],
    }  # fmt: skip
    attributes: dict[str, dict[str, Any]] = {
        "Gather": {"axis": 2}, "Concat": {"axis": 2}, "Transpose": {"perm": [0, 1, 3, 2]},
        "ReduceMax": {"keepdims": 1}, "MaxPool": {"kernel_shape": [2, 2]},
    }  # fmt: skip
    return g.op(kind, x, *inputs.get(kind, []), **attributes.get(kind, {}))


def _pool_quantized_again(
    g: Graph, between: str = "Identity", scale: float | list[float] = 0.3, before: str = "Identity"
) -> str:
    x = _moved(g, between, g.op("MaxPool", _moved(g, before, image(g)), kernel_shape=[2, 2]))
    return g.op(
        "Add", conv(g, x, g.weight(32, 32, 1, 1)), g.quantized(x, scale, axis=1 if isinstance(scale, list) else None)
    )


POOLS_IN_INTEGERS: dict[str, Case] = {
    **{
        f"max pool, {kind}, quantized again per channel": partial(_pool_quantized_again, between=kind, scale=[0.3] * 32)
        for kind in ("Neg", "Slice", "Gather", "Expand", "Tile")
    },
    **{
        f"max pool, {kind}, quantized again": partial(_pool_quantized_again, between=kind)
        for kind in ("GlobalMaxPool", "ReduceMax")
    },
    **{
        f"{kind}, max pool that is quantized again": partial(_pool_quantized_again, before=kind)
        for kind in ("Neg", "Transpose", "Slice", "Tile", *NEARLY_NO_OPS)
    },
}  # fmt: skip
POOLS_IN_FLOAT: dict[str, Case] = {
    "max pool that is quantized again": _pool_quantized_again,
    **{f"{kind}, max pool that is quantized again": partial(_pool_quantized_again, before=kind) for kind in NO_OPS},
    **{
        f"max pool, {kind}, quantized again per channel": partial(_pool_quantized_again, between=kind, scale=[0.3] * 32)
        for kind in NO_OPS
    },
    **{
        f"max pool, {kind}, quantized again": partial(_pool_quantized_again, between=kind)
        for kind in ("Neg", "Slice", "Gather", "Tile")
    },
    **{
        f"max pool, {kind}, quantized again per channel": partial(_pool_quantized_again, between=kind, scale=[0.3] * 32)
        for kind in ("Transpose", "Concat", "MaxPool")
    },
}  # fmt: skip
