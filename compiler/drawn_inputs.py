"""Calibration inputs for a Program that comes without data.

Batch norms remember the statistics of what reached them in training. Inputs that bring these statistics about
show a quantizer the ranges that real ones do (ZeroQ, Cai et al. 2020, https://arxiv.org/abs/2001.00281).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.calibration import Calibration, seeded
from planish.compiler.cost import totals
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.progress import Stages
from planish.compiler.shapes import tensor_of

ROWS, FEWEST_ROWS = 16, 4
STEPS, FEWEST_STEPS = 50, 10
LEARNING_RATE = 0.1
EPSILON = 1e-6
WORK = 4e11
"""Work to spend, in multiply-accumulates: about 20 s of two CPU cores. No time is measured, so that the same
seed draws the same inputs on every machine."""
WORK_PER_BYTE = 3
"""Multiply-accumulates that take as long as moving a byte of an activation, to and fro."""

aten = torch.ops.aten


def draw_calibration(program: Program, samples: int = 64, seed: int = 0, progress: Stages | None = None) -> Calibration:
    """At most ``samples`` rows of inputs for ``program``; fewer where matching statistics costs too much.

    Float inputs start from a normal distribution. Where batch norms with running statistics read what is
    computed from them, Adam changes them until mean and standard deviation at these batch norms come close.
    Integer inputs that select rows of an embedding are drawn from all its rows; all others keep their example
    values.
    """
    fork = program.fork().eval()
    norms = _norms_reached_by_floats(fork)
    rows, count, steps = _effort(fork, samples)
    generator = seeded(seed)
    batches = [_draw(fork, rows, generator) for _ in range(math.ceil(count / rows))]
    if not norms:
        return Calibration(batches, "drawn from a normal distribution")
    matched = []
    for index, batch in enumerate(batches):
        if progress:
            progress.say("drawing calibration inputs", index / len(batches))
        matched.append(_match(fork, norms, batch, steps))
    told = f"{len(norms)} batch norm{'s' if len(norms) > 1 else ''}"
    return Calibration(matched, f"drawn so as to match the statistics of {told}")


def _effort(program: Program, samples: int) -> tuple[int, int, int]:
    """Rows at once, rows in all, and optimization steps, such that all of it stays within WORK."""
    rows = min(ROWS, samples) if program.dynamic_axes else program.example_inputs.batch_size
    cost = totals(program, rows)
    row_step = 2 * (cost.macs + WORK_PER_BYTE * cost.activation_bytes) / rows  # forward and backward
    affordable = int(WORK / max(row_step, 1))
    steps = max(FEWEST_STEPS, min(STEPS, affordable // samples))
    count = max(FEWEST_ROWS, min(samples, affordable // steps))
    return (min(rows, count) if program.dynamic_axes else rows), count, steps


# ---------------------------------------------------------------------- matching statistics


def _norms_reached_by_floats(program: Program) -> list[fx.Node]:
    """The batch norms with running statistics whose input is computed from a float input of the Program."""
    reached: set[fx.Node] = set()
    for node, leaf in zip(program.placeholders, program.example_inputs.leaves(), strict=True):
        if _is_drawn(leaf):
            reached.add(node)
    for node in program.graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    norms = program.calls(aten.batch_norm.default)
    return [node for node in norms if node.args[0] in reached and program.tensor(node.args[3]) is not None]


def _is_drawn(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


class _Distance(fx.Interpreter):
    """Runs a Program, and sums up how far the statistics at its batch norms are from the running ones."""

    def __init__(self, program: Program, norms: list[fx.Node]) -> None:
        super().__init__(program.graph_module)
        self._norms = {node: _running_statistics(program, node) for node in norms}

    def of(self, leaves: list[Any]) -> Tensor:
        self._terms: list[Tensor] = []
        self.run(*leaves, enable_io_processing=False)
        return torch.stack(self._terms).sum()

    def run_node(self, n: fx.Node) -> Any:
        if n in self._norms:
            values = n.args[0]
            assert isinstance(values, fx.Node)
            self._terms.append(_difference(self.env[values].float(), *self._norms[n]))
        return super().run_node(n)


def _running_statistics(program: Program, norm: fx.Node) -> tuple[Tensor, Tensor]:
    mean, variance = program.tensor(norm.args[3]), program.tensor(norm.args[4])
    assert mean is not None and variance is not None
    return mean, variance


def _difference(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Squared differences of mean and standard deviation, in units of the latter; mean over the channels."""
    others = [axis for axis in range(values.ndim) if axis != 1]
    deviation = (variance.float() + EPSILON).sqrt()
    here = (values.var(others, correction=0) + EPSILON).sqrt()
    return (((values.mean(others) - mean) / deviation) ** 2 + (here / deviation - 1) ** 2).mean()


def _match(program: Program, norms: list[fx.Node], inputs: Inputs, steps: int) -> Inputs:
    leaves = inputs.leaves()
    floats = [index for index, leaf in enumerate(leaves) if _is_drawn(leaf)]
    drawn = [leaves[index].float().requires_grad_() for index in floats]  # Adam's steps are too small for halves
    optimizer = torch.optim.Adam(drawn, LEARNING_RATE)
    distance = _Distance(program, norms)

    def current() -> list[Any]:
        values = dict(zip(floats, drawn, strict=True))
        return [values[i].to(leaf.dtype) if i in values else leaf for i, leaf in enumerate(leaves)]

    for _ in range(steps):
        gradients = torch.autograd.grad(distance.of(current()), drawn, allow_unused=True)
        for value, gradient in zip(drawn, gradients, strict=True):
            value.grad = gradient
        optimizer.step()
    matched = iter([leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in current()])
    return inputs.map(lambda _: next(matched))


# ---------------------------------------------------------------------- drawing


def _draw(program: Program, rows: int, generator: torch.Generator) -> Inputs:
    """One batch of ``rows`` rows where the batch is dynamic."""
    nodes = iter(program.placeholders)

    def draw(leaf: Any) -> Any:
        node = next(nodes)
        if not isinstance(leaf, Tensor):
            return leaf
        axes = program.dynamic_axes.get(node.name, {})
        shape = [rows if axes.get(axis) == "batch" else size for axis, size in enumerate(leaf.shape)]
        choices = _embedding_rows(node)
        if leaf.is_floating_point():
            return torch.randn(shape, generator=generator).to(leaf.device, leaf.dtype)
        if choices and leaf.dtype in (torch.int32, torch.int64):
            return torch.randint(choices, shape, generator=generator).to(leaf.device, leaf.dtype)
        for axis, size in enumerate(shape):
            leaf = leaf.index_select(axis, torch.arange(size, device=leaf.device) % leaf.shape[axis])
        return leaf

    return program.example_inputs.map(draw)


def _embedding_rows(placeholder: fx.Node) -> int:
    """Rows of the smallest embedding that looks up the values of ``placeholder``; 0 if none does."""
    found: list[int] = []
    waiting = [placeholder]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if user.target in _EMBEDDINGS and len(user.args) > 1 and user.args[1] is node:
                table = user.args[0]
                assert isinstance(table, fx.Node)
                found.append(tensor_of(table).shape[0])
            elif _only_moves_values(user):
                waiting.append(user)
    return min(found, default=0)


_EMBEDDINGS = (aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx)
_MOVES = (
    aten.reshape,
    aten.flatten,
    aten.contiguous,
    aten.clone,
    aten.to,
    aten._to_copy,
    aten.repeat,
    aten.roll,
)


def _only_moves_values(node: fx.Node) -> bool:
    """Whether every value of the result is one of the first argument."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return target is operator.getitem
    return target.overloadpacket in _MOVES or any(result.alias_info is not None for result in target._schema.returns)
