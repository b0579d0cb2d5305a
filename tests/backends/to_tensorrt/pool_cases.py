"""Max pools behind integers whose values are quantized again beside the convolution that reads them."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.backends.to_tensorrt.graphs import Case, Graph, conv, image


def _moved(g: Graph, kind: str, x: str) -> str:
    """An operator that moves or chooses values of [1, 32, h, w]."""
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
        for kind in ("Neg", "Transpose", "Slice", "Tile")
    },
}  # fmt: skip
POOLS_IN_FLOAT: dict[str, Case] = {
    "max pool that is quantized again": _pool_quantized_again,
    **{
        f"max pool, {kind}, quantized again": partial(_pool_quantized_again, between=kind)
        for kind in ("Neg", "Slice", "Gather", "Tile")
    },
    **{
        f"max pool, {kind}, quantized again per channel": partial(_pool_quantized_again, between=kind, scale=[0.3] * 32)
        for kind in ("Transpose", "Concat", "MaxPool")
    },
}  # fmt: skip
