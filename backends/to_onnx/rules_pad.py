"""Paddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from planish.backends.to_onnx.emitter import Emitter, Rule, Size, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten


def pad(e: Emitter, x: Value, pads: Sequence[Size], mode: str = "constant", value: float | None = None) -> Value:
    if not all(isinstance(p, int) for p in pads):
        raise e.fail("padding by a dynamic amount")
    kind = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    return e.op(
        "Pad", x, e.constant(onnx_pads(pads, e.fake(0).ndim)), e.constant(value or 0, e.result_dtype()), mode=kind
    )


def onnx_pads(pads: Sequence[Any], rank: int) -> list[int]:
    """torch: (left, right) from the last dimension backwards; ONNX: all begins, then all ends."""
    begins, ends = [0] * rank, [0] * rank
    for step in range(len(pads) // 2):
        begins[rank - 1 - step], ends[rank - 1 - step] = int(pads[2 * step]), int(pads[2 * step + 1])
    return begins + ends


def constant_pad(e: Emitter, x: Value, pads: Sequence[Size], value: float = 0) -> Value:
    return pad(e, x, pads, "constant", value)


def border(mode: str) -> Rule:
    return lambda e, x, pads: pad(e, x, pads, mode)


RULES: dict[Operator, Rule] = {
    aten.pad.default: pad, aten.constant_pad_nd.default: constant_pad,
    aten.reflection_pad1d.default: border("reflect"), aten.replication_pad1d.default: border("replicate"),
    aten.reflection_pad2d.default: border("reflect"), aten.replication_pad2d.default: border("replicate"),
    aten.reflection_pad3d.default: border("reflect"), aten.replication_pad3d.default: border("replicate"),
}  # fmt: skip
