"""What stands for tensors of more dimensions than Core ML has; the rules are in high_ranks.py."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from planish.backends.to_coreml.calls import Calls
from planish.compiler.program import Program

aten = torch.ops.aten
MAX_RANK = 5
Size = Any
"""An int; a symbol where it is dynamic."""


class Stays(Exception):
    """There is no rule for this form of the operator."""


def is_high(node: fx.Node) -> bool:
    value = node.meta.get("val")
    listed = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(each, Tensor) and each.ndim > MAX_RANK for each in listed)


def shape_of(node: Any) -> list[Size]:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        raise Stays
    return [*value.shape]


def _is_one(size: Size) -> bool:
    return isinstance(size, int) and size == 1


def product(sizes: Iterable[Size]) -> int:
    """-1, which a reshape infers, if one of ``sizes`` is dynamic."""
    listed = [*sizes]
    return math.prod(listed) if all(isinstance(size, int) and size >= 0 for size in listed) else -1


def _joined(shapes: Sequence[Sequence[Size]], most: int) -> list[list[int]]:
    """Neighbouring dimensions along which the same of ``shapes`` are 1, put together until ``most`` are left.

    Those along which all are 1 go with any others. More than ``most`` are returned where there is no way.
    """
    groups = [[dim] for dim in range(len(shapes[0]))]
    ones = [tuple(_is_one(shape[dim]) for shape in shapes) for dim in range(len(shapes[0]))]
    at = 0
    while len(groups) > most and at + 1 < len(groups):
        a, b = ones[at : at + 2]
        if a != b and not all(a) and not all(b):
            at += 1
            continue
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
        ones[at : at + 2] = [b if all(a) else a]
    return groups


class Ranks:
    """What stands for the values of one Program that have too many dimensions."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.stand_ins: dict[fx.Node, fx.Node] = {}
        self.call: Calls
        """Makes nodes in front of the one that is being rewritten."""

    def stand_in(self, node: Any) -> fx.Node:
        """The numbers of ``node`` in their order, on as few dimensions as Core ML has."""
        if is_high(node) and node not in self.stand_ins:
            constant = self.program.tensor(node)
            if constant is None:
                raise Stays
            self.stand_ins[node] = self.call.constant(constant.detach().flatten())
        found: fx.Node = self.stand_ins.get(node, node)
        return found

    def reshaped(self, value: fx.Node, sizes: Iterable[Size]) -> fx.Node:
        known = [size if isinstance(size, int) else -1 for size in sizes]
        if known.count(-1) > 1:
            raise Stays
        return self.call(aten.reshape.default, value, known)

    def around(self, node: Any, dim: int) -> fx.Node:
        """[all in front of ``dim``, ``dim``, all behind it]"""
        shape = shape_of(node)
        dim %= len(shape)
        return self.reshaped(self.stand_in(node), [product(shape[:dim]), shape[dim], product(shape[dim + 1 :])])

    def permuted(self, node: Any, order: Sequence[int]) -> fx.Node:
        """Rule 2."""
        shape = shape_of(node)
        real = [dim for dim, size in enumerate(shape) if not _is_one(size)]
        groups: list[list[int]] = []
        for dim in (real.index(dim) for dim in order if dim in real):
            if groups and dim == groups[-1][-1] + 1:
                groups[-1].append(dim)
            else:
                groups.append([dim])
        ordered = sorted(groups)
        sizes = [product(shape[real[dim]] for dim in group) for group in ordered]
        places = [ordered.index(group) for group in groups]
        if len(sizes) > MAX_RANK:
            return self._swapped(self.stand_in(node), sizes, places)
        return self.call(aten.permute.default, self.reshaped(self.stand_in(node), sizes), places)

    def _swapped(self, value: fx.Node, sizes: list[int], order: list[int]) -> fx.Node:
        now = [*range(len(order))]
        for place, wanted in enumerate(order):
            at = now.index(wanted)
            if at != place:
                blocks = now[:place], now[place:at], [wanted], now[at + 1 :]
                four = self.reshaped(value, [product(sizes[dim] for dim in block) for block in blocks])
                value = self.call(aten.permute.default, four, [0, 2, 1, 3])
                now = [*now[:place], wanted, *now[place:at], *now[at + 1 :]]
        return value

    def expanded(self, node: Any, own: Sequence[Size], wanted: Sequence[Size]) -> fx.Node:
        """The numbers of ``node``, of the shape ``own``, as often as in the shape ``wanted``."""
        value = self.stand_in(node)
        for group in _joined([own, wanted], most=1):
            size = product(wanted[dim] for dim in group)
            if all(_is_one(own[dim]) for dim in group) and size != 1:
                if size < 0:
                    raise Stays
                front, behind = product(wanted[: group[0]]), product(own[group[-1] + 1 :])
                value = self.call(aten.expand.default, self.reshaped(value, [front, 1, behind]), [-1, size, -1])
        return value

    def aligned(self, nodes: Sequence[fx.Node], out: Sequence[Size], last: int, most: int) -> dict[fx.Node, fx.Node]:
        """Rules 3 and 6: operands on the same dimensions, ``most`` of them in front of the ``last``, which stay.

        ``out``: what those in front are broadcast to.
        """
        shapes = {node: [1] * (len(out) + last - len(shape_of(node))) + shape_of(node) for node in nodes}
        values = {node: self.stand_in(node) for node in nodes}
        groups = _joined([*(shape[: len(out)] for shape in shapes.values()), out], most)
        if len(groups) > most:
            for node, own in shapes.items():
                # Along the dynamic dimension it stays as it is: how often is not known.
                wanted = [size if isinstance(size, int) else had for size, had in zip(out, own, strict=False)]
                shapes[node] = [*wanted, *own[len(out) :]]
                values[node] = self.expanded(node, own, shapes[node])
            groups = _joined([*(shape[: len(out)] for shape in shapes.values()), out], most)
        return {
            node: self.reshaped(
                values[node], [*(product(shape[dim] for dim in group) for group in groups), *shape[len(out) :]]
            )
            for node, shape in shapes.items()
        }
