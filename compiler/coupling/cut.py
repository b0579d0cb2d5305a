"""Removes units: selects what is left of every tensor, and rewrites every size that the graph has written out."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from planish.compiler.coupling.dims import Dim
from planish.compiler.coupling.groups import Coupling, Group
from planish.compiler.coupling.inference import SizeArgument
from planish.compiler.coupling.sizes import Sizes
from planish.compiler.errors import UserError
from planish.compiler.program import Program, copied, get_attribute, set_tensor

Removed = Mapping[Group, Iterable[int]]
"""Group -> the units that go."""
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


def cut(coupling: Coupling, removed: Removed) -> Program:
    """``coupling.program`` without the units in ``removed``. What is left computes what it computed before.

    Raises UserError if a group would lose all its units, or units that it does not have.
    """
    kept = _Kept(removed)
    graph = copied(coupling.program.graph)
    nodes = dict(zip(coupling.program.graph.nodes, graph.nodes, strict=True))
    for argument in coupling.size_arguments:
        _resize(nodes[argument.node], argument, kept)
    for node in graph.nodes:
        node.meta.pop("val", None)
    program = coupling.program.with_graph(graph)
    _select(program, _masks(coupling, kept))
    return program


def left_of_tensors(coupling: Coupling, removed: Removed) -> dict[str, dict[int, Mask]]:
    """Name of a tensor that loses some -> axis -> which of its indices are left."""
    return _masks(coupling, _Kept(removed))


def _masks(coupling: Coupling, kept: _Kept) -> dict[str, dict[int, Mask]]:
    masks = {
        name: {axis: mask for axis, dim in enumerate(shape) if (mask := kept.mask(dim)) is not None and not mask.all()}
        for name, shape in coupling.tensors.items()
    }
    return {name: of_axes for name, of_axes in masks.items() if of_axes}


class _Kept:
    """What is left of dimensions."""

    def __init__(self, removed: Removed) -> None:
        self.of_atom: dict[Dim, Mask] = {}
        for group, units in removed.items():
            gone = np.zeros(group.width + 1, bool)  # the last stands for what stays: unit -1
            listed = [*units]
            if not all(0 <= unit < group.width for unit in listed):
                raise UserError(f"Remove units 0 to {group.width - 1} of {group.name}; got {listed}.")
            gone[listed] = True
            for atom, cells in group.units.items():
                self.of_atom[atom] = ~gone[cells]
                if gone[cells].all():
                    raise UserError(f"Leave {group.name} at least one of its {group.width} units.")
        self.sizes = Sizes({atom: int(mask.sum()) for atom, mask in self.of_atom.items()})

    def mask(self, dim: Dim) -> Mask | None:
        """Which indices of ``dim`` are left; None for all."""
        dim = dim.root()
        if dim.kind == "atom":
            return self.of_atom.get(dim)
        masks = [self.mask(part) for part in dim.parts]
        if all(mask is None for mask in masks):
            return None
        pairs = zip(dim.parts, masks, strict=True)
        whole = [np.ones(part.size, bool) if mask is None else mask for part, mask in pairs]
        if dim.kind == "sum":
            return np.concatenate(whole)
        kept = whole[0]
        for mask in whole[1:]:
            kept = (kept[:, None] & mask[None, :]).reshape(-1)
        return kept


def _select(program: Program, left: Mapping[str, Mapping[int, Mask]]) -> None:
    """Every tensor without what goes; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for name, masks in left.items():
        whole = get_attribute(program.graph_module, name)
        if id(whole) not in made:
            made[id(whole)] = _selected(whole, masks)
        set_tensor(program.graph_module, name, made[id(whole)])


def _selected(tensor: Tensor, masks: Mapping[int, Mask]) -> Tensor:
    part = tensor.detach()
    for axis, mask in masks.items():
        part = part.index_select(axis, torch.from_numpy(np.flatnonzero(mask)).to(part.device))
    return nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


def _resize(node: fx.Node, argument: SizeArgument, kept: _Kept) -> None:
    old, new = argument.dim.size, kept.sizes.of(argument.dim)
    if new == old:
        return
    names = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]
    index = names.index(argument.name)
    positional = index < len(node.args)
    value = node.args[index] if positional else node.kwargs[argument.name]
    if argument.element is not None:
        assert isinstance(value, (list, tuple))
        resized: Any = [*value]
        resized[argument.element] = _scaled(node, value[argument.element], old, new)
    else:
        resized = _scaled(node, value, old, new)
    if positional:
        node.update_arg(index, resized)
    else:
        node.update_kwarg(argument.name, resized)


def _scaled(node: fx.Node, value: Any, old: int, new: int) -> Any:
    """``new`` for ``old``; of a size that the graph computes, the same share."""
    if not isinstance(value, fx.Node):
        return new
    shared = math.gcd(old, new)
    with node.graph.inserting_before(node):
        divided = node.graph.call_function(operator.floordiv, (value, old // shared))
        return node.graph.call_function(operator.mul, (divided, new // shared))
