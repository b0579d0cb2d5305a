"""What a ratio is a share of: MACs, parameters, or the estimated latency of the target, at any widths."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import fx

from planish.compiler.alignment import computed_along
from planish.compiler.coupling.dims import Dim
from planish.compiler.coupling.groups import Group
from planish.compiler.hardware import HardwareProfile, peak_gops
from planish.compiler.macs import macs
from planish.compiler.roofline import float_dtype, kernels
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.widths import Left, Sizes, Widths

MEASURES = {"macs": "MACs", "parameters": "parameters", "latency": "estimated latency"}
"""Option -> in words."""


class Measure(Protocol):
    """A cost for one row with what is left of atoms, and what a cut of one group alone saves of it."""

    def __call__(self, left: Left) -> float: ...
    def saved(self, group: Group, left: Left) -> float: ...


def measure(
    of: str, widths: Widths, profile: HardwareProfile, scheme: QuantizationScheme | None, multiple: int
) -> Measure:
    """The Measure that the option ``of`` names. Latencies of other widths than multiples are those of the next one."""
    if of == "latency":
        return EstimatedLatency(widths, profile, scheme, multiple)
    return Macs(widths) if of == "macs" else Parameters(widths)


def costs_of_nodes(
    of: str, widths: Widths, profile: HardwareProfile, scheme: QuantizationScheme | None
) -> dict[fx.Node, float]:
    """The same by node; what a kernel takes is the first node's."""
    costs, program = widths.costs, widths.coupling.program
    if of == "macs":
        return {node: float(costs.macs(node)) for node in program.calls()}
    if of == "parameters":
        return {node: float(cost.parameters) for node, cost in zip(program.calls(), costs.of_nodes(), strict=True)}
    return {nodes[0]: seconds for nodes, seconds in EstimatedLatency(widths, profile, scheme, 1).of_kernels({})}


@dataclass(frozen=True)
class Macs:
    widths: Widths

    def __call__(self, left: Left) -> float:
        return float(self.widths.macs(left))

    def saved(self, group: Group, left: Left) -> float:
        nodes = self.widths.governed(group)
        return float(self.widths.macs({}, nodes) - self.widths.macs(left, nodes))


@dataclass(frozen=True)
class Parameters:
    widths: Widths

    def __call__(self, left: Left) -> float:
        return float(self.widths.parameters(left))

    def saved(self, group: Group, left: Left) -> float:
        return self({}) - self(left)


@dataclass(frozen=True)
class _Kernel:
    """Nodes that run as one: what they multiply, and what they read and write."""

    nodes: list[fx.Node]
    rate: float
    """MACs a second."""
    item_bytes: int
    """Of a number of the dtype that it computes in."""
    multiplying: list[fx.Node]
    moved: list[fx.Node]
    atoms: frozenset[Dim]


class EstimatedLatency:
    """Seconds of a roofline over kernels: arithmetic or traffic, whichever is longer, with what odd widths waste.

    An axis that was cut to no ``multiple`` costs the arithmetic of the next one. What the backend's scheme takes runs
    in INT8. No launch overheads: no profile has one. An estimate, never a time.
    """

    def __init__(
        self, widths: Widths, profile: HardwareProfile, scheme: QuantizationScheme | None, multiple: int
    ) -> None:
        self._widths, self._along, self._multiple = widths, computed_along(widths), multiple
        self._bandwidth = profile.memory.bandwidth_gb_s.value * 1e9
        self._kernels = [self._kernel(nodes, profile, scheme) for nodes in kernels(widths.costs)]

    def __call__(self, left: Left) -> float:
        return self._seconds(left, self._kernels)

    def saved(self, group: Group, left: Left) -> float:
        touched = [kernel for kernel in self._kernels if not kernel.atoms.isdisjoint(group.units)]
        return self._seconds({}, touched) - self._seconds(left, touched)

    def of_kernels(self, left: Left) -> Iterator[tuple[list[fx.Node], float]]:
        """The nodes of each kernel, and its seconds."""
        for kernel in self._kernels:
            yield kernel.nodes, self._seconds(left, [kernel])

    def _seconds(self, left: Left, of: Iterable[_Kernel]) -> float:
        exact = self._widths.shapes(Sizes(left))
        wasteful = self._widths.shapes(_Padded(left, self._along, self._multiple))
        total = 0.0
        for kernel in of:
            arithmetic = sum(macs(node, wasteful) for node in kernel.multiplying) / kernel.rate
            traffic = sum(math.prod(exact(node)) for node in kernel.moved) * kernel.item_bytes / self._bandwidth
            total += max(arithmetic, traffic)
        return total

    def _kernel(self, nodes: list[fx.Node], profile: HardwareProfile, scheme: QuantizationScheme | None) -> _Kernel:
        multiplying = [node for node in nodes if self._widths.costs.macs(node)]
        integer = scheme is not None and any(scheme.find(node.target) is not None for node in multiplying)
        dtype = "int8" if integer else float_dtype(profile)
        rate = _gops(profile, dtype) * 1e9 / 2
        around = frozenset(atom for node in nodes for atom in self._widths.atoms_around(node))
        return _Kernel(nodes, rate, {"int8": 1, "fp16": 2}.get(dtype, 4), multiplying, [*self._moved(nodes)], around)

    def _moved(self, nodes: list[fx.Node]) -> Iterator[fx.Node]:
        read = {value for node in nodes for value in node.all_input_nodes} - {*nodes}
        yield from (value for value in (*read, nodes[-1]) if self._widths.costs.shapes(value))


class _Padded(Sizes):
    """What is computed along is rounded up to a multiple, where something was cut."""

    def __init__(self, left: Left, along: Container[Dim], multiple: int) -> None:
        super().__init__({})
        self._exact, self._along, self._multiple = Sizes(left), along, multiple

    def of(self, dim: Dim) -> int:
        size = self._exact.of(dim)
        if size == dim.size or dim not in self._along:
            return size
        return min(-(-size // self._multiple) * self._multiple, dim.size)


def _gops(profile: HardwareProfile, dtype: str) -> float:
    rate = peak_gops(profile, dtype)
    return rate.value if rate else min(rate.value for unit in profile.units for rate in unit.peak_gops.values())
