"""What can be cut: groups of units that go together, and where they lie in which tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx

from planish.compiler.coupling.dims import Dim, Frozen, atoms, freeze
from planish.compiler.coupling.inference import Inference, Rules, Shape, SizeArgument, Type
from planish.compiler.coupling.normalize import normalize
from planish.compiler.coupling.orbits import PINNED, Cells, find_orbits
from planish.compiler.coupling.rules import rule_finder
from planish.compiler.program import Program
from planish.compiler.shapes import ensure_shapes


@dataclass(frozen=True, eq=False)
class Member:
    """An axis of a tensor of the Program in which the units of a group lie."""

    tensor: str
    """Name of the parameter or buffer."""
    axis: int
    learned: bool
    """Whether the tensor is a parameter."""
    dim: Dim
    cells: Mapping[Dim, Cells]
    occurrence: int
    """Which factor of ``dim``, where several belong to the group."""

    @property
    def module(self) -> str:
        return self.tensor.rpartition(".")[0]

    @cached_property
    def units(self) -> Tensor:
        """int64 [size of the axis]: the unit that each index belongs to, -1 for none."""
        return torch.from_numpy(_units_along(self.dim, self.cells)[self.occurrence])


@dataclass(frozen=True, eq=False)
class Group:
    """Dimensions that are cut together: removing a unit removes its indices from every member."""

    name: str
    """The module of the first learned member; ``#2`` and so on, where one module begins several groups."""
    width: int
    """How many units there are."""
    units: Mapping[Dim, Cells]
    """Atom -> the unit of each of its indices, -1 for one that stays."""
    members: tuple[Member, ...]

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(member.module for member in self.members))


@dataclass(frozen=True)
class Fixed:
    """An axis of a parameter, or a part of it, that cannot be cut, and why."""

    tensor: str
    axis: int
    reason: Frozen


@dataclass(frozen=True)
class Coupling:
    """The groups of a Program. Tensors are those of ``program``: a normalized fork of the one that was given."""

    program: Program
    groups: tuple[Group, ...]
    fixed: tuple[Fixed, ...]
    types: Mapping[fx.Node, Type]
    size_arguments: tuple[SizeArgument, ...]
    not_understood: Mapping[fx.Node, str] = field(default_factory=dict)
    """Nodes that no rule covers, and why: all their inputs and outputs stay as they are."""

    @cached_property
    def tensors(self) -> dict[str, Shape]:
        """The dimensions of each parameter and buffer that the graph reads, by name."""
        return dict(_tensors(self.program, self.types))


def couple(program: Program, rules: Rules | None = None) -> Coupling:
    """Find what can be cut in ``program``, from its ops alone.

    ``rules`` are added to the built-in ones. Linear in the number of nodes; computes with sizes only.
    """
    ensure_shapes(program)
    rule_of = rule_finder(rules or {})
    program = normalize(program, rule_of)
    inference = Inference(program, rule_of)
    orbits = find_orbits(inference.equations.deferred)
    tensors = dict(_tensors(program, inference.types))
    learned = {name for name, _ in program.graph_module.named_parameters(remove_duplicate=False)}
    groups = tuple(_groups(learned, tensors, orbits))
    return Coupling(
        program, groups, tuple(_fixed(learned, tensors)), inference.types, tuple(inference.size_arguments),
        inference.not_understood,
    )  # fmt: skip


def _tensors(program: Program, types: Mapping[fx.Node, Type]) -> Iterator[tuple[str, Shape]]:
    for node in program.graph.nodes:
        shape = types[node]
        if node.op == "get_attr" and isinstance(shape, tuple):
            yield str(node.target), shape


# ---------------------------------------------------------------------- groups


def _groups(learned: set[str], tensors: Mapping[str, Shape], orbits: Mapping[Dim, Cells]) -> Iterator[Group]:
    places: dict[Dim, list[tuple[str, int]]] = {}
    for name, shape in tensors.items():
        for axis, dim in enumerate(shape):
            for atom in dict.fromkeys(atoms(dim)):
                if atom.frozen is None and atom.size > 1:
                    places.setdefault(atom, []).append((name, axis))
    order = {name: index for index, name in enumerate(tensors)}
    taken: dict[str, int] = {}
    for units in _connected([*places], orbits):
        listed = {place for atom in units for place in places.get(atom, ())}
        known: dict[Dim, int] = {}
        members = tuple(
            Member(name, axis, name in learned, tensors[name][axis], units, occurrence)
            for name, axis in sorted(listed, key=lambda place: (order[place[0]], place[1]))
            for occurrence in range(_occurrences(tensors[name][axis], units, known))
        )
        width = 1 + max(int(cells.max()) for cells in units.values())
        first = next((member for member in members if member.learned), None)
        if width == 1:
            for atom in units:
                freeze(atom, Frozen("its indices only go all together"))
        elif first is not None:
            module = first.module or first.tensor
            taken[module] = taken.get(module, 0) + 1
            name = module if taken[module] == 1 else f"{module}#{taken[module]}"
            yield Group(name, width, units, members)


def _connected(free: list[Dim], orbits: Mapping[Dim, Cells]) -> Iterator[dict[Dim, Cells]]:
    """Atoms whose cells share orbits, with the unit of each cell; an atom in no orbit stands alone."""
    groups: dict[Dim, list[Dim]] = {}
    owner: dict[int, Dim] = {}
    for atom, cells in orbits.items():
        together = [*dict.fromkeys(owner[orbit] for orbit in {*cells.tolist()} if orbit in owner)]
        merged = [atom, *(other for first in together for other in groups.pop(first, []))]
        groups[merged[0]] = merged
        for other in merged:
            owner.update((orbit, merged[0]) for orbit in {*orbits[other].tolist()} if orbit != PINNED)
    seen: set[Dim] = set()
    grouped = {atom: members for members in groups.values() for atom in members}
    for atom in free:
        if atom in seen:
            continue
        members = grouped.get(atom, [atom])
        seen.update(members)
        if atom not in orbits:
            yield {atom: np.arange(atom.size)}
            continue
        numbers = {orbit: unit for unit, orbit in enumerate(_orbits_in_order(members, orbits))}
        numbers[PINNED] = PINNED
        yield {each: np.array([numbers[orbit] for orbit in orbits[each].tolist()]) for each in members}


def _orbits_in_order(members: list[Dim], orbits: Mapping[Dim, Cells]) -> list[int]:
    return [*dict.fromkeys(orbit for atom in members for orbit in orbits[atom].tolist() if orbit != PINNED)]


def _occurrences(dim: Dim, units: Mapping[Dim, Cells], known: dict[Dim, int]) -> int:
    """How many factors of ``dim`` belong to the group, along the segment that has most."""
    dim = dim.root()
    if dim not in known:
        of_parts = [_occurrences(part, units, known) for part in dim.parts]
        known[dim] = {"atom": int(dim in units), "product": sum(of_parts), "sum": max(of_parts, default=0)}[dim.kind]
    return known[dim]


def _units_along(dim: Dim, units: Mapping[Dim, Cells]) -> list[Cells]:
    """The unit at each index of ``dim``; one array more for each further factor that belongs to the group."""
    dim = dim.root()
    if dim.kind == "atom":
        return [units[dim]] if dim in units else []
    if dim.kind == "sum":
        return _side_by_side(dim, units)
    found, inner = [], dim.size
    for part in dim.parts:
        inner //= part.size
        outer = dim.size // (inner * part.size)
        found += [np.tile(np.repeat(cells, inner), outer) for cells in _units_along(part, units)]
    return found


def _side_by_side(dim: Dim, units: Mapping[Dim, Cells]) -> list[Cells]:
    of_parts = [_units_along(part, units) for part in dim.parts]
    deepest = max(len(found) for found in of_parts)
    return [
        np.concatenate([
            found[depth] if depth < len(found) else np.full(part.size, PINNED)
            for part, found in zip(dim.parts, of_parts, strict=True)
        ])
        for depth in range(deepest)
    ]  # fmt: skip


def _fixed(learned: set[str], tensors: Mapping[str, Shape]) -> Iterator[Fixed]:
    for name, shape in tensors.items():
        for axis, dim in enumerate(shape):
            reasons = [atom.frozen for atom in atoms(dim) if atom.size > 1 and atom.frozen is not None]
            if name in learned and reasons:
                yield Fixed(name, axis, reasons[0])
