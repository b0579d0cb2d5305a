"""What a ratio is a share of: MACs, parameters, or the estimated latency of the target, at any widths."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import fx

from planish.compiler.alignment import computed_along
from planish.compiler.coupling.dims import Dim
from planish.compiler.coupling.groups import Group
from planish.compiler.coupling.sizes import Left, Sizes
from planish.compiler.hardware import HardwareProfile
from planish.compiler.roofline import Kernel, Roofline, float_dtype
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.widths import Widths

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


class EstimatedLatency:
    """Seconds of the roofline over kernels (compiler/roofline.py), with what odd widths waste.

    An axis that was cut to no ``multiple`` costs the arithmetic of the next one. What the backend's scheme takes runs
    in INT8. An estimate, never a time.
    """

    def __init__(
        self, widths: Widths, profile: HardwareProfile, scheme: QuantizationScheme | None, multiple: int
    ) -> None:
        def dtype_of(node: fx.Node) -> str:
            return "int8" if scheme is not None and scheme.find(node.target) is not None else float_dtype(profile)

        self._widths, self._along, self._multiple = widths, computed_along(widths), multiple
        self._roofline = Roofline(widths.costs, profile, dtype_of)
        self._atoms = {
            kernel: frozenset(atom for node in kernel.nodes for atom in widths.atoms_around(node))
            for kernel in self._roofline.kernels
        }

    def __call__(self, left: Left) -> float:
        return self._seconds(left, self._atoms)

    def saved(self, group: Group, left: Left) -> float:
        touched = [kernel for kernel, atoms in self._atoms.items() if not atoms.isdisjoint(group.units)]
        return self._seconds({}, touched) - self._seconds(left, touched)

    def of_kernels(self, left: Left) -> Iterator[tuple[tuple[fx.Node, ...], float]]:
        """The nodes of each kernel, and its seconds."""
        for kernel in self._atoms:
            yield kernel.nodes, self._seconds(left, [kernel])

    def _seconds(self, left: Left, of: Iterable[Kernel]) -> float:
        exact = self._widths.shapes(Sizes(left))
        wasteful = self._widths.shapes(_Padded(left, self._along, self._multiple))
        return sum(self._roofline.seconds(kernel, exact, wasteful) for kernel in of)


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
