"""What activations look like on calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.passes.calibrators import Calibrator, Histogram

aten = torch.ops.aten

PIECE = 4096
"""Values kept of each piece of a batch, at first and at most."""
CAPACITY = 16 * PIECE
"""Values kept in all: when it is full, every third one stays, and later pieces give a third as many."""
BINS = 2048


class Observed:
    """The values of one activation: exact range, and an even sample.

    The sample has its memory from the start: small blocks that are allocated between the large ones of a running
    model, and kept, would hold on to all of the heap (1 GB on ResNet-50).
    """

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0  # zero has to be representable: padding is zero
        self._sample = torch.zeros(CAPACITY)
        self._count, self._thinning = 0, 1
        self.finite = True

    def see(self, values: Tensor) -> None:
        if not values.numel():
            return
        values = _in_memory_order(values)
        low, high = map(float, torch.aminmax(values))
        self.finite &= math.isfinite(low) and math.isfinite(high)  # both are NaN where one value is
        self.low, self.high = min(self.low, low), max(self.high, high)
        # an odd stride does not fall in step with the even sizes of images and channels
        stride = (-(-values.numel() // PIECE) | 1) * self._thinning
        self._keep(values.flatten()[::stride])

    def _keep(self, values: Tensor) -> None:
        if self._count + values.numel() > CAPACITY:
            third = self._sample[: self._count : 3].clone()
            self._count, self._thinning = third.numel(), 3 * self._thinning
            self._sample[: self._count] = third
        self._sample[self._count : self._count + values.numel()] = values
        self._count += values.numel()

    def range(self, calibrator: Calibrator, steps: int, symmetric: bool) -> tuple[float, float]:
        """The reals that ``steps`` + 1 integers should cover; zero among them."""
        if self.high <= self.low:
            return 0.0, 0.0
        low, high = calibrator(self.histogram(), steps, symmetric)
        return min(low, 0.0), max(high, 0.0)

    def histogram(self) -> Histogram:
        """Counts of the sample over the exact range, whose ends are counted once at least."""
        sample = self._sample[: self._count].double().numpy()  # masks of -3.4e38, and values of 1e-42, in 2048 steps
        counts, edges = np.histogram(sample, bins=BINS, range=(self.low, self.high))
        centres = (edges[:-1] + edges[1:]) / 2
        centres[0], centres[-1] = self.low, self.high
        weights = counts.astype(np.float64)
        weights[[0, -1]] = np.maximum(weights[[0, -1]], 1.0)
        return centres, weights


def _in_memory_order(values: Tensor) -> Tensor:
    """``values`` with the longest stride first: reading a dense tensor so takes no copy, whatever its layout."""
    return values.permute(sorted(range(values.ndim), key=values.stride, reverse=True))


See = Callable[[fx.Node, Any], None]


def observe(
    program: Program, nodes: Collection[fx.Node], batches: Iterable[Inputs], *others: See
) -> dict[fx.Node, Observed]:
    """Run ``program`` on all ``batches``; what is not needed any more is freed as it goes.

    ``others`` see each value of each batch as well.
    Raises UserError if there is no batch, or if a value is not finite.
    """
    recorder = _Recorder(program, nodes, others)
    relaid = _is_layout_free(program)
    count = 0
    for inputs in batches:
        leaves = [_channels_last(leaf) for leaf in inputs.leaves()] if relaid else inputs.leaves()
        recorder.run(*leaves, enable_io_processing=False)
        count += 1
    if not count:
        raise UserError("Pass calibration data with at least one batch; the iterable is empty.")
    for node, seen in recorder.seen.items():
        if not seen.finite:
            raise UserError(f"Check the calibration data and the model: {node.name} has infinite or NaN values on it.")
    return recorder.seen


class _Recorder(fx.Interpreter):
    def __init__(self, program: Program, nodes: Collection[fx.Node], others: Collection[See]) -> None:
        super().__init__(program.graph_module)
        self.seen = {node: Observed() for node in nodes}
        self.others = others

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.seen:
            self.seen[n].see(value)
        for see in self.others:
            see(n, value)
        return value


_SEE_STRIDES = (aten.as_strided.default, aten.view_as_complex.default, aten.view.dtype)


def _is_layout_free(program: Program) -> bool:
    """Whether the Program computes the same however its inputs lie in memory.

    Not where an operator is told strides or demands some, is none of PyTorch's own, or writes in place: ``reshape``
    gives a view of one layout and a copy of another.
    """
    operators = [node.target for node in program.calls() if isinstance(node.target, torch._ops.OpOverload)]
    return all(
        operator.namespace == "aten" and not operator._schema.is_mutable and operator not in _SEE_STRIDES
        for operator in operators
    )


def _channels_last(leaf: Any) -> Any:
    """Images with their channels innermost, in which convolutions are faster: all of ResNet-50 by an eighth."""
    image = isinstance(leaf, Tensor) and leaf.ndim == 4
    return leaf.contiguous(memory_format=torch.channels_last) if image else leaf
