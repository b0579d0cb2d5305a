"""Weights of what is left, fitted so that layers give what they gave with all channels (arXiv:1707.06168, 3.1).

Channels that go take their part of the next layer's sums with them. What is left can give most of it back: least
squares on data, layer by layer, each with the inputs that it has once those before it are cut and fitted. Rows that the
fit does not see decide how far the weights may move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx

from planish.compiler.coupling.cut import Mask
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, arguments, replace_tensor
from planish.passes.side_by_side import OneBatch
from planish.passes.sparsity.inputs import rows_of
from planish.passes.sparsity.layers import Layer, find_layers, weight_name

ROWS = 1 << 13
"""Rows of inputs for each layer, evenly chosen; four for each weight of a channel where that is more."""
DAMPING = (1e-3, 1e-2, 1e-1)
"""How strongly the weights are held where they are, in units of the mean square of the inputs."""
HELD_OUT = 4
"""Of so many batches one is not fitted to."""


class Fitted(NamedTuple):
    """The error of a layer's outputs on rows that it was not fitted to, over their mean square."""

    before: float
    after: float


def reconstruct(
    program: Program, whole: Program, left: Mapping[str, Mapping[int, Mask]], batches: Sequence[Inputs]
) -> list[Fitted]:
    """Fit the layers of ``program`` that lost inputs, in place: cut from ``whole``, whose nodes have the same names.

    ``left``: what is left of each tensor (``left_of_tensors``). ``batches``: two or more. Holds the values that are
    still needed, of both Programs, for all batches.
    """
    lost = {layer.node.name: layer for layer in find_layers(program)[0] if _lost_inputs(layer, left)}
    before = {layer.node.name: layer for layer in find_layers(whole)[0]}
    twins = {node.name: node for node in whole.graph.nodes}
    runs = [(OneBatch(program, inputs), OneBatch(whole, inputs)) for inputs in batches]
    fitted = []
    with torch.no_grad():
        for node in program.graph.nodes:
            layer, old = lost.get(node.name), before.get(node.name)
            if layer is not None and old is not None and layer.groups == old.groups:
                pair = _Pair.of(program, layer, whole, old, left)
                sums = _observed(pair, runs)
                if sums is not None:
                    fitted.append(pair.fit(program, *sums))
            for cut, reference in runs:
                cut.step(node)
                if node.name in twins:
                    reference.step(twins[node.name])
    return fitted


def _lost_inputs(layer: Layer, left: Mapping[str, Mapping[int, Mask]]) -> bool:
    """Whether ``layer``, which shares its weight with no other call, lost some."""
    return len(layer.uses) == 1 and layer.input_axis in left.get(weight_name(layer), {})


@dataclass(frozen=True)
class _Pair:
    """A layer that lost inputs, and what it was."""

    cut: Layer
    whole: Layer
    bias: fx.Node | None
    """The bias of ``cut``, which is fitted as well; None where it has none of its own."""
    start: Tensor
    """[groups, columns (and one for the bias), rows] of ``cut`` before the fit."""
    wanted: Tensor
    """The same of ``whole``, with the rows that are left."""

    @classmethod
    def of(
        cls, program: Program, layer: Layer, whole: Program, old: Layer, left: Mapping[str, Mapping[int, Mask]]
    ) -> _Pair:
        bias = _own_bias(program, layer)
        rows = _rows_left(old, left[weight_name(layer)].get(1 - layer.input_axis))
        wanted = _columns(whole, old, bias is not None).transpose(1, 2)[rows]
        wanted = wanted.unflatten(0, (layer.groups, -1)).transpose(1, 2)
        return cls(layer, old, bias, _columns(program, layer, bias is not None), wanted)

    def fit(self, program: Program, seen: _Sums, held_out: _Sums) -> Fitted:
        """Replace weight and bias, held to what they are as does best on rows that are held out."""
        choices = [self.start, *seen.solved(self.start, DAMPING)]
        errors = [held_out.error(choice) for choice in choices]
        best = min(range(len(errors)), key=errors.__getitem__)
        if best:
            (solution,) = (seen + held_out).solved(self.start, DAMPING[best - 1 : best])
            self._put(program, solution)
        return Fitted(errors[0], errors[best])

    def _put(self, program: Program, solution: Tensor) -> None:
        if self.bias is not None:
            replace_tensor(program, self.bias, solution[:, -1].flatten())
            solution = solution[:, :-1]
        replace_tensor(program, self.cut.uses[0].weight, self.cut.weight(solution.transpose(1, 2)))


def _own_bias(program: Program, layer: Layer) -> fx.Node | None:
    """The bias, where no other op reads it and each row of the matrix has one."""
    bias = _bias(layer) if layer.kind in ("linear", "convolution") else None
    tensor = None if bias is None else program.tensor(bias)
    if tensor is None:
        return None
    readers = [user for node in program.graph.nodes if program.tensor(node) is tensor for user in node.users]
    return bias if readers == [layer.node] else None


def _bias(layer: Layer) -> fx.Node | None:
    bias = arguments(layer.node).get("bias")
    return bias if isinstance(bias, fx.Node) else None


def _columns(program: Program, layer: Layer, with_bias: bool) -> Tensor:
    """[groups, columns, rows]: the weight, and on wish behind it the bias as what multiplies one."""
    weight, bias = program.tensor(layer.uses[0].weight), _bias(layer)
    assert weight is not None
    exact = torch.promote_types(weight.dtype, torch.float32)  # as rows_of
    columns = layer.matrix(weight.detach().to(exact)).transpose(1, 2)
    if not with_bias:
        return columns
    added = None if bias is None else program.tensor(bias)
    assert added is not None
    return torch.cat([columns, added.detach().to(exact).reshape(layer.groups, 1, -1)], 1)


def _rows_left(layer: Layer, outputs: Mask | None) -> Tensor:
    """[groups, rows]: whether a row of the matrix of the whole ``layer`` is left."""
    rows = layer.outputs // layer.groups
    taps = math.prod(layer.shape[2:]) if layer.kind == "transposed convolution" else 1
    if outputs is None:
        return torch.ones(layer.groups, taps * rows, dtype=torch.bool)
    mask = torch.from_numpy(outputs)
    return mask.repeat(layer.groups, taps) if layer.kind == "transposed convolution" else mask.view(layer.groups, rows)


def _observed(pair: _Pair, runs: Sequence[tuple[OneBatch, OneBatch]]) -> tuple[_Sums, _Sums] | None:
    """Of batches to fit to, and of held out ones; None where the rows of both Programs are not the same ones."""
    at_most = -(-max(ROWS, 4 * pair.start.shape[1]) // len(runs))
    sums: dict[bool, _Sums] = {}
    for index, (cut, whole) in enumerate(runs):
        x, before = (
            _with_ones(rows_of(layer, layer.uses[0], run.value(layer.uses[0].input), at_most), pair.bias)
            for layer, run in ((pair.cut, cut), (pair.whole, whole))
        )
        if x.shape[1] != before.shape[1]:
            return None
        y, held_out = before @ pair.wanted, index % HELD_OUT == 1
        found = _Sums((x.mT @ x).double(), (x.mT @ y).double(), float(y.double().square().sum()))
        squares = float(found.gram.diagonal(dim1=1, dim2=2).sum()) + found.squares
        if not math.isfinite(squares):
            raise UserError(f"Check the data and the model: {pair.cut.name} has infinite or NaN values on it.")
        sums[held_out] = sums[held_out] + found if held_out in sums else found
    return sums[False], sums[True]


def _with_ones(rows: Tensor, bias: fx.Node | None) -> Tensor:
    return rows if bias is None else torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)


# ---------------------------------------------------------------------- least squares


@dataclass(frozen=True)
class _Sums:
    """All that least squares needs of rows of inputs X [groups, n, columns] and of outputs Y [groups, n, rows]."""

    gram: Tensor
    """X^T X."""
    cross: Tensor
    """X^T Y."""
    squares: float
    """The sum of Y^2."""

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.gram + other.gram, self.cross + other.cross, self.squares + other.squares)

    def solved(self, start: Tensor, dampings: Sequence[float]) -> Iterator[Tensor]:
        """[groups, columns, rows]: each minimizes |XW - Y|^2 + damping * mean square of X * |W - start|^2."""
        held = self.gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        missing = self.cross - self.gram @ start.double()
        for damping in dampings:
            damped = self.gram.clone()
            damped.diagonal(dim1=1, dim2=2).add_(damping * held[:, None])
            yield start + torch.cholesky_solve(missing, torch.linalg.cholesky(damped)).to(start)

    def error(self, weights: Tensor) -> float:
        """|XW - Y|^2 over |Y|^2."""
        weights = weights.double()
        error = (weights * (self.gram @ weights - 2 * self.cross)).sum() + self.squares
        return float(error) / self.squares if self.squares else 0.0
