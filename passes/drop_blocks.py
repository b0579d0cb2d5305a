"""Drop whole residual blocks: fewer kernels, where narrower ones would take as long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from planish.compiler.contracts import Context, Pass, Stage
from planish.compiler.coupling.groups import couple
from planish.compiler.errors import UserError, closest
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.widths import Widths
from planish.passes.pruning.blocks import Block, find_blocks
from planish.passes.pruning.gradients import rows_of
from planish.passes.pruning.measures import MEASURES, costs_of_nodes
from planish.passes.pruning.names import fits
from planish.passes.training.recover import recover, training_data
from planish.passes.training.settings import Training


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Removes residual blocks and encoder layers, those first that matter least for what they cost.

    1. ``pruning/blocks`` finds them: what stands between a value and its sum with itself.
    2. Each is left out in turn; how far the outputs move on data tells how much it matters (arXiv:2004.03844 drops
       layers of encoders, arXiv:2403.03853 ranks them by their influence).
    3. Blocks go until the share is reached; whoever read the result of one reads its input.

    ``ratio``: the share to remove, of ``of``: ``macs``, ``parameters``, or ``latency`` (estimated, of the target).
    ``keep``: blocks that stay, by module name or pattern.
    ``samples``: rows of data on which outputs are compared.
    ``training``: train what is left; None: one shot.
    """

    name: ClassVar[str] = "drop-blocks"
    stage: ClassVar[Stage] = Stage.STRUCTURE

    ratio: float = 0.3
    of: str = "latency"
    keep: tuple[str, ...] = ()
    samples: int = 64
    training: Training | None = None

    def __post_init__(self) -> None:
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float)) or not 0 <= self.ratio < 1:
            raise UserError(f"Give {self.name} ratio a share of at least 0 and below 1, not {self.ratio!r}.")
        if self.of not in MEASURES:
            raise UserError(f"{self.name} has no measure of {self.of!r}{closest(str(self.of), MEASURES)}")
        if isinstance(self.keep, str):  # read letter by letter otherwise
            raise UserError(f"Give keep a tuple of names: ({self.keep!r},).")
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise UserError(f"Give {self.name} samples a whole number of at least 1, not {self.samples!r}.")

    def run(self, program: Program, context: Context) -> Program:
        if self.training is not None:
            training_data(context)  # says now that there is none
        coupling = couple(program, context.coupling_rules)
        program = coupling.program.eval()
        blocks = find_blocks(coupling)
        if not blocks:
            raise UserError(f"Leave {self.name} out: this model has no block that its input could replace.")
        candidates = self._candidates(blocks)
        cost = costs_of_nodes(self.of, Widths(coupling), context.profile, context.scheme)
        change = _changes(program, candidates, [*rows_of(program, context, self.samples)])
        dropped = self._choose(candidates, change, cost)
        for block in blocks:
            outcome = "dropped" if block in dropped else "stays"
            told = f"without it outputs change by {change[block]:.2g}" if block in change else "keep names it"
            context.decide(block.result, outcome, f"{block.name}: {told}")
        gone = frozenset().union(*(block.inside for block in dropped))
        removed = f"{_share(gone, cost):.1%} of the {MEASURES[self.of]}"
        context.notes.append(f"Removed {removed}: {len(dropped)} of {len(blocks)} blocks.")
        shallow = without(program, dropped)
        return shallow if self.training is None else recover(shallow, context, self.training).program

    def _candidates(self, blocks: list[Block]) -> list[Block]:
        names = {block.name for block in blocks}
        for pattern in self.keep:
            if not any(fits(name, pattern) for name in names):
                raise UserError(f"keep names {pattern!r}, which is no block of the model{closest(pattern, names)}")
        return [block for block in blocks if not any(fits(block.name, pattern) for pattern in self.keep)]

    def _choose(self, blocks: list[Block], change: dict[Block, float], cost: dict[fx.Node, float]) -> list[Block]:
        """Blocks until the ratio is reached, the smallest change for what they save first."""
        chosen: list[Block] = []
        gone: frozenset[fx.Node] = frozenset()
        left = [*blocks]
        while _share(gone, cost) < self.ratio:
            worth = {block: change[block] / saved for block in left if (saved := _share(block.inside - gone, cost)) > 0}
            if not worth:
                raise UserError(
                    f"Lower the ratio of {self.name}: all blocks together are {_share(gone, cost):.1%} of the "
                    f"{MEASURES[self.of]}, and {self.ratio:.1%} was asked for."
                )
            best = min(worth, key=worth.__getitem__)
            chosen.append(best)
            left.remove(best)
            gone |= best.inside
        return chosen


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


def _changes(program: Program, blocks: list[Block], rows: list[Inputs]) -> dict[Block, float]:
    """For each block, the squared change of all outputs without it, as a share of their square."""
    with torch.no_grad():
        expected = [_numbers(inputs.call(program)) for inputs in rows]
        whole = sum(float(numbers.square().sum()) for numbers in expected)
        changes: dict[Block, float] = {}
        for block in blocks:
            shallow = without(program, [block])
            found = (_numbers(inputs.call(shallow)) for inputs in rows)
            moved = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
            changes[block] = moved / max(whole, torch.finfo(torch.float64).tiny)
    return changes


def _numbers(outputs: object) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not leaves:
        raise UserError("Leave drop-blocks out: no output of this model is a real number that could be compared.")
    return torch.cat([leaf.flatten().double() for leaf in leaves])


def _share(nodes: Iterable[fx.Node], cost: dict[fx.Node, float]) -> float:
    return sum(cost.get(node, 0.0) for node in nodes) / sum(cost.values())
