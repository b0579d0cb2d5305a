"""Drop whole residual blocks: fewer kernels, where narrower ones would take as long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.compiler.contracts import Context, Pass, Proposal, Situation, Stage
from planish.compiler.coupling.groups import Coupling, couple
from planish.compiler.errors import UserError, closest
from planish.compiler.program import Program
from planish.compiler.widths import Widths
from planish.passes.pruning.blocks import Block, find_blocks
from planish.passes.pruning.depth import Drop, drops, without
from planish.passes.pruning.gradients import rows_of
from planish.passes.pruning.measures import MEASURES, costs_of_nodes
from planish.passes.pruning.names import fits
from planish.passes.pruning.proposal import propose_blocks
from planish.passes.training.recover import recover, training_data
from planish.passes.training.settings import Training


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Removes residual blocks and encoder layers, those first that matter least for what they cost.

    1. ``pruning/blocks`` finds them: what stands between a value and its sum with itself.
    2. How far the outputs move on data without one tells how much it matters (arXiv:2004.03844 drops layers of
       encoders, arXiv:2403.03853 ranks them by their influence); it is asked anew once others are gone.
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

    @classmethod
    def propose(cls, situation: Situation) -> Proposal | None:
        return propose_blocks(cls, situation)

    def run(self, program: Program, context: Context) -> Program:
        if self.training is not None:
            training_data(context)  # says now that there is none
        coupling = couple(program, context.coupling_rules)
        program = coupling.program.eval()
        blocks = find_blocks(coupling)
        if not blocks:
            raise UserError(f"Leave {self.name} out: this model has no block that its input could replace.")
        dropped = self._choose(coupling, blocks, context)
        self._tell(blocks, dropped, context)
        shallow = without(program, [drop.block for drop in dropped])
        return shallow if self.training is None else recover(shallow, context, self.training).program

    def _choose(self, coupling: Coupling, blocks: list[Block], context: Context) -> list[Drop]:
        """Drops until the ratio is reached."""
        cost = costs_of_nodes(self.of, Widths(coupling), context.profile, context.scheme)
        rows = [*rows_of(coupling.program, context, self.samples)]
        chosen: list[Drop] = []
        gone = 0.0
        for drop in drops(coupling.program, self._candidates(blocks), rows, cost):
            if gone >= self.ratio:
                break
            chosen.append(drop)
            gone = drop.share
            if context.progress is not None:
                context.progress.say(f"dropping blocks: {gone:.0%} gone", min(1.0, gone / self.ratio))
        if gone < self.ratio:
            raise UserError(
                f"Lower the ratio of {self.name}: all blocks together are {gone:.1%} of the "
                f"{MEASURES[self.of]}, and {self.ratio:.1%} was asked for."
            )
        return chosen

    def _tell(self, blocks: list[Block], dropped: list[Drop], context: Context) -> None:
        turns = {drop.block: (turn, drop) for turn, drop in enumerate(dropped, 1)}
        for block in blocks:
            if block in turns:
                turn, drop = turns[block]
                told = f"number {turn} to go; without these, outputs change by {drop.change:.2g}"
                context.decide(block.result, "dropped", f"{block.name}: {told}")
            else:
                context.decide(block.result, "stays", f"{block.name}: matters more for what it costs, or is kept")
        removed = f"{dropped[-1].share if dropped else 0.0:.1%} of the {MEASURES[self.of]}"
        context.notes.append(f"Removed {removed}: {len(dropped)} of {len(blocks)} blocks.")

    def _candidates(self, blocks: list[Block]) -> list[Block]:
        names = {block.name for block in blocks}
        for pattern in self.keep:
            if not any(fits(name, pattern) for name in names):
                raise UserError(f"keep names {pattern!r}, which is no block of the model{closest(pattern, names)}")
        return [block for block in blocks if not any(fits(block.name, pattern) for pattern in self.keep)]
