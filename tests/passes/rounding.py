"""Rounding written by hand: what a quantized Program has to compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.program import Program
from planish.compiler.scheme import IntegerType
from planish.passes.placement import Placement


def grid(low: float, high: float, kind: IntegerType) -> tuple[float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    if kind.symmetric:
        return max(high / kind.maximum, low / kind.minimum, 2**-23), 0
    scale = max((high - low) / (kind.maximum - kind.minimum), 2**-23)
    return scale, min(max(kind.minimum - round(low / scale), kind.minimum), kind.maximum)


def fake(x: Tensor, scale: float, zero: int, kind: IntegerType) -> Tensor:
    return (torch.clamp(torch.round(x / scale) + zero, kind.minimum, kind.maximum) - zero) * scale


def fake_weight(weight: Tensor) -> Tensor:
    shape = (-1, *[1] * (weight.ndim - 1))
    scale = (weight.flatten(1).abs().amax(1) / 127).clamp_min(2**-23).float().to(weight.dtype).reshape(shape)
    return torch.clamp(torch.round(weight / scale), -127, 127) * scale


class Reference(fx.Interpreter):
    """The float Program with rounding wherever the placement says so: the same rules, written the other way round.

    Integer results are rounded for every reader; the input of an operator that alone reads integers for it alone.
    """

    def __init__(self, program: Program, placement: Placement, ranges: dict[str, tuple[float, int]]) -> None:
        super().__init__(program.graph_module)
        by_name = {node.name: node for node in program.graph.nodes}
        self.kinds = {by_name[node.name]: kind for node, kind in placement.results.items()}
        self.shared = {by_name[node.name]: by_name[source.name] for node, source in placement.shared.items()}
        self.only = {(by_name[a.name], by_name[b.name]): kind for (a, b), kind in placement.edges.items()}
        self.weights = {(by_name[a.name], by_name[b.name]) for a, b in placement.weights}
        self.ranges = ranges

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        def value(node: fx.Node) -> Any:
            found = self.env[node]
            if (node, n) in self.weights:
                return fake_weight(found)
            origin = node
            while origin in self.shared:
                origin = self.shared[origin]
            kind = self.kinds.get(origin) or self.only.get((node, n))
            return found if kind is None else fake(found, *self.ranges[origin.name], kind)

        args, kwargs = fx.map_arg((n.args, n.kwargs), value)
        return args, kwargs


def float_ranges(program: Program, placement: Placement, batches: list[Tensor]) -> dict[str, tuple[float, int]]:
    """Scale and zero point of every observed value, from the plain float run."""
    kinds = {node.name: kind for node, kind in placement.results.items()}
    for (producer, _), kind in placement.edges.items():
        kinds.setdefault(producer.name, kind)
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in kinds and isinstance(value, Tensor):
                lows[n.name] = min(lows.get(n.name, 0.0), float(value.min()))
                highs[n.name] = max(highs.get(n.name, 0.0), float(value.max()))
            return value

    for batch in batches:
        Watch(program.graph_module).run(batch, enable_io_processing=False)
    return {name: grid(lows[name], highs[name], kinds[name]) for name in lows}
