"""Which blocks go: those without which outputs move least, for what they cost."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.passes.pruning.blocks import Block


@dataclass(frozen=True)
class Drop:
    """One block that goes."""

    block: Block
    change: float
    """The squared change of all outputs without it and those that went before, as a share of their square."""
    share: float
    """Of the cost, that is gone by then."""


def drops(
    program: Program, blocks: Sequence[Block], rows: Sequence[Inputs], cost: Mapping[fx.Node, float]
) -> Iterator[Drop]:
    """``blocks`` in the order in which they should go, until none saves anything.

    Greedy: each is the one that moves the outputs on ``rows`` least for what it saves of ``cost``, with those before
    it gone. A block rarely matters less once others are gone, so one that was far from the best is not looked at again
    before its turn comes (the accelerated greedy algorithm, Minoux 1978).
    """
    change = _Change(program, rows)
    waiting = [
        (change(block) / saved, 0, at) for at, block in enumerate(blocks) if (saved := _share(block.inside, cost))
    ]
    heapq.heapify(waiting)
    gone: list[Block] = []
    inside: frozenset[fx.Node] = frozenset()
    moved = 0.0
    while waiting:
        _, looked_at, at = heapq.heappop(waiting)
        saved = _share(blocks[at].inside - inside, cost)
        if not saved:
            continue
        if looked_at < len(gone):
            worth = (change(*gone, blocks[at]) - moved) / saved
            heapq.heappush(waiting, (worth, len(gone), at))
            continue
        gone.append(blocks[at])
        inside |= blocks[at].inside
        moved = change(*gone)
        yield Drop(blocks[at], moved, _share(inside, cost))


def without(program: Program, blocks: Iterable[Block]) -> Program:
    """A fork of ``program`` in which whoever read the result of one of ``blocks`` reads its source."""
    fork = program.fork()
    twins = dict(zip(program.graph.nodes, fork.graph.nodes, strict=True))
    instead = {block.result: block.source for block in blocks}
    for result in instead:
        source = instead[result]
        while source in instead:  # the block in front goes as well
            source = instead[source]
        twins[result].replace_all_uses_with(twins[source])
    fork.graph.eliminate_dead_code()
    return fork.fork()  # without the tensors that nobody reads


class _Change:
    """How far the outputs of ``program`` on ``rows`` move without some blocks."""

    def __init__(self, program: Program, rows: Sequence[Inputs]) -> None:
        self._program, self._rows = program, rows
        self._known: dict[frozenset[Block], float] = {}
        self._expected = [*self._outputs(program)]
        whole = sum(float(numbers.square().sum()) for numbers in self._expected)
        self._whole = max(whole, torch.finfo(torch.float64).tiny)

    def __call__(self, *gone: Block) -> float:
        key = frozenset(gone)
        if key not in self._known:
            found = self._outputs(without(self._program, gone))
            moved = sum(float((a - b).square().sum()) for a, b in zip(found, self._expected, strict=True))
            self._known[key] = moved / self._whole
        return self._known[key]

    def _outputs(self, program: Program) -> Iterator[Tensor]:
        for inputs in self._rows:
            with torch.no_grad():
                yield _numbers(inputs.call(program))


def _numbers(outputs: object) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not leaves:
        raise UserError("Leave drop-blocks out: no output of this model is a real number that could be compared.")
    return torch.cat([leaf.flatten().double() for leaf in leaves])


def _share(nodes: Iterable[fx.Node], cost: Mapping[fx.Node, float]) -> float:
    return sum(cost.get(node, 0.0) for node in nodes) / sum(cost.values())
