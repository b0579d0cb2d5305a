"""What a Program costs when units of its groups are gone: sizes follow from the types alone, nothing is cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from torch import fx, nn

from planish.compiler.cost import Costs
from planish.compiler.coupling.dims import Dim, atoms
from planish.compiler.coupling.groups import Coupling, Group
from planish.compiler.coupling.inference import Type
from planish.compiler.coupling.sizes import Left, Sizes
from planish.compiler.macs import Shape, macs
from planish.compiler.program import get_attribute


class Widths:
    """The costs of a Coupling's Program for one call with ``batch`` rows, at any widths of its groups."""

    def __init__(self, coupling: Coupling, batch: int = 1) -> None:
        self.coupling = coupling
        self.costs = Costs(coupling.program, batch)
        self.free = {atom.root() for group in coupling.groups for atom in group.units}
        self._shapes: dict[fx.Node, list[tuple[int, Dim | None]]] = {}

    def macs(self, left: Left, nodes: Iterable[fx.Node] | None = None) -> int:
        """The MACs of ``nodes`` (of all) with what is ``left``."""
        shape = self.shapes(Sizes(left))
        return sum(macs(node, shape) for node in (self.multiplying if nodes is None else nodes))

    def parameters(self, left: Left) -> int:
        """The learned values with what is ``left``."""
        sizes = Sizes(left)
        return sum(math.prod(map(sizes.of, dims)) for dims in self._learned)

    def governed(self, group: Group) -> list[fx.Node]:
        """The nodes whose MACs depend on the width of ``group``."""
        return [*dict.fromkeys(node for atom in group.units for node in self._multiplying_with.get(atom, ()))]

    @cached_property
    def multiplying(self) -> list[fx.Node]:
        """The nodes that have MACs."""
        return [node for node in self.coupling.program.calls() if self.costs.macs(node)]

    def shapes(self, sizes: Sizes) -> Any:
        """A function that gives the shape of a node's (first) tensor."""

        def shape(node: fx.Node) -> Shape:
            # Of a symbolic size the types know a stand-in; what is left is the same share of it.
            return tuple(size if dim is None else size * sizes.of(dim) // dim.size for size, dim in self._typed(node))

        return shape

    def dims_with_atoms(self, node: fx.Node) -> list[Dim | None]:
        """For each axis of a node's tensor, its dimension where that can be cut."""
        return [dim for _, dim in self._typed(node)]

    def _typed(self, node: fx.Node) -> list[tuple[int, Dim | None]]:
        if node not in self._shapes:
            sizes = self.costs.shape(node)
            dims = _first_shape(self.coupling.types[node])
            assert len(dims) == len(sizes), f"{node.name} has {len(sizes)} dimensions, not {len(dims)}"
            cuttable = [None if self.free.isdisjoint(atoms(dim)) else dim.root() for dim in dims]
            self._shapes[node] = [*zip(sizes, cuttable, strict=True)]
        return self._shapes[node]

    @cached_property
    def _multiplying_with(self) -> dict[Dim, list[fx.Node]]:
        found: dict[Dim, list[fx.Node]] = {}
        for node in self.multiplying:
            for atom in self.atoms_around(node):
                found.setdefault(atom, []).append(node)
        return found

    def atoms_around(self, node: fx.Node) -> set[Dim]:
        """The atoms that can be cut in the value of ``node`` and in those that it reads."""
        values = [value for value in (node, *node.all_input_nodes) if self.costs.shapes(value)]
        dims = [dim for value in values for dim in self.dims_with_atoms(value) if dim is not None]
        return {atom for dim in dims for atom in atoms(dim) if atom in self.free}

    @cached_property
    def _learned(self) -> list[tuple[Dim, ...]]:
        """The dimensions of the parameters that something is computed with, tied ones once."""
        program = self.coupling.program
        read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr" and node.users}
        tensors = {name: get_attribute(program.graph_module, name) for name in self.coupling.tensors if name in read}
        first = {id(tensor): name for name, tensor in reversed(tensors.items()) if isinstance(tensor, nn.Parameter)}
        return [self.coupling.tensors[name] for name in first.values()]


def _first_shape(type_: Type) -> tuple[Dim, ...]:
    return next(_shapes_in(type_))


def _shapes_in(type_: Type) -> Iterator[tuple[Dim, ...]]:
    if isinstance(type_, tuple):
        yield type_
    elif isinstance(type_, list):
        for item in type_:
            yield from _shapes_in(item)
