"""Weights of what is left, fitted so that layers give what they gave with all channels (arXiv:1707.06168, 3.1).

Channels that go take their part of the next layer's sums with them. What is left can give most of it back: least
squares on data, layer by layer, each with the inputs that it has once those before it are cut and fitted. Rows that the
fit does not see decide how far the weights may move.

A weight that several calls share is fitted to all of them at once, before the others, with the inputs that they have in
the whole Program: after the cut one call's inputs may depend on what another gives, as in recurrent nets, and a fit to
inputs that it changes itself can diverge.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
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
from planish.passes.sparsity.layers import Layer, Use, find_layers, weight_name

ROWS = 1 << 13
"""Rows of inputs for each layer, evenly chosen; four for each weight of a channel where that is more."""
DAMPING = (1e-3, 1e-2, 1e-1)
"""How strongly the weights are held where they are, in units of the mean square of the inputs."""
HELD_OUT = 4
"""Of so many batches one is not fitted to."""

Left = Mapping[str, Mapping[int, Mask]]
"""What is left of each tensor (``left_of_tensors``)."""
Runs = Sequence[tuple[OneBatch, OneBatch]]
"""Each batch on its way through the Program that was cut, and through the whole one."""


class Fitted(NamedTuple):
    """The error of a layer's outputs on rows that it was not fitted to, over their mean square."""

    before: float
    after: float


def reconstruct(program: Program, whole: Program, left: Left, batches: Sequence[Inputs]) -> list[Fitted]:
    """Fit the layers of ``program`` that lost inputs, in place: cut from ``whole``, whose nodes have the same names.

    ``batches``: two or more. Holds the values that are still needed where a layer is fitted, of both Programs, for all
    batches.
    """
    before = {_calls(layer): layer for layer in find_layers(whole)[0]}
    lost = [
        (layer, old)
        for layer in find_layers(program)[0]
        if layer.input_axis in left.get(weight_name(layer), {})
        and (old := before.get(_calls(layer))) is not None
        and layer.groups == old.groups
    ]
    with torch.no_grad():
        shared = [_Pair.of(program, layer, whole, old, left) for layer, old in lost if len(layer.uses) > 1]
        fitted = _fit_shared(program, whole, shared, batches)
        alone = {layer.node: (layer, old) for layer, old in lost if len(layer.uses) == 1}
        runs = [(OneBatch(program, inputs), OneBatch(whole, inputs)) for inputs in batches]
        for node in _stops(program, whole, alone, runs):
            layer, old = alone[node]
            pair = _Pair.of(program, layer, whole, old, left)
            sums = _observed(pair, runs)
            if sums is not None:
                fitted.append(pair.fit(program, *sums))
    return fitted


def _calls(layer: Layer) -> tuple[str, ...]:
    return tuple(use.node.name for use in layer.uses)


def _fit_shared(program: Program, whole: Program, pairs: Sequence[_Pair], batches: Sequence[Inputs]) -> list[Fitted]:
    """With the inputs that all their calls have in ``whole``."""
    found = [(pair, pair.no_sums()) for pair in pairs]
    calls = {use.node: (pair, use, sums) for pair, sums in found for use in pair.whole.uses}
    for number, inputs in enumerate(batches if calls else ()):
        run = OneBatch(whole, inputs)
        for node in whole.graph.nodes:
            if node in calls:
                pair, use, sums = calls[node]
                rows = pair.rows(pair.whole, use, run, len(batches))
                sums[_is_held_out(number)].add_rows(pair.left_of(rows), rows @ pair.wanted)
            run.step(node)
    return [pair.fit(program, *sums) for pair, sums in found]


def _stops(program: Program, whole: Program, stops: Container[fx.Node], runs: Runs) -> Iterator[fx.Node]:
    """Each of ``stops``, where all ``runs`` have come to it. What lies between two is held for one batch alone."""
    twins = {node.name: node for node in whole.graph.nodes}
    since: list[fx.Node] = []
    for node in program.graph.nodes:
        if node in stops:
            for cut, reference in runs:
                for each in since:
                    cut.step(each)
                for each in since:
                    if each.name in twins:
                        reference.step(twins[each.name])
            since = []
            yield node
        since.append(node)


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
    columns: Tensor
    """[groups, columns (and one for the bias)] of ``whole``: whether ``cut`` has it."""

    @classmethod
    def of(cls, program: Program, layer: Layer, whole: Program, old: Layer, left: Left) -> _Pair:
        bias, masks = _own_bias(program, layer), left[weight_name(layer)]
        rows = _rows_left(old, masks.get(1 - layer.input_axis))
        wanted = _columns(whole, old, bias is not None).transpose(1, 2)[rows]
        wanted = wanted.unflatten(0, (layer.groups, -1)).transpose(1, 2)
        columns = _columns_left(old, masks[layer.input_axis], bias is not None)
        return cls(layer, old, bias, _columns(program, layer, bias is not None), wanted, columns)

    def rows(self, layer: Layer, use: Use, run: OneBatch, batches: int) -> Tensor:
        """[groups, n, columns (and one for the bias)]: inputs of a call of ``cut`` or of ``whole``."""
        at_most = -(-max(ROWS, 4 * self.start.shape[1]) // (batches * len(layer.uses)))
        rows = rows_of(layer, use, run.value(use.input), at_most)
        return rows if self.bias is None else torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], 2)

    def left_of(self, rows: Tensor) -> Tensor:
        """Of inputs of ``whole`` those that ``cut`` has."""
        left: Tensor = rows.mT[self.columns].unflatten(0, (len(rows), -1))
        return left.mT

    def no_sums(self) -> tuple[_Sums, _Sums]:
        """Of batches to fit to, and of held out ones."""
        return _Sums.none(self.start), _Sums.none(self.start)

    def fit(self, program: Program, seen: _Sums, held_out: _Sums) -> Fitted:
        """Replace weight and bias, held to what they are as does best on rows that are held out."""
        if not math.isfinite(seen.total() + held_out.total()):
            raise UserError(f"Check the data and the model: {self.cut.name} has infinite or NaN values on it.")
        choices = [self.start, *seen.solved(self.start, DAMPING)]
        errors = [held_out.error(choice) for choice in choices]
        best = min(range(len(errors)), key=errors.__getitem__)
        if best:
            seen.add(held_out)
            (solution,) = seen.solved(self.start, DAMPING[best - 1 : best])
            self._put(program, solution)
        return Fitted(errors[0], errors[best])

    def _put(self, program: Program, solution: Tensor) -> None:
        if self.bias is not None:
            replace_tensor(program, self.bias, solution[:, -1].flatten())
            solution = solution[:, :-1]
        replace_tensor(program, self.cut.uses[0].weight, self.cut.weight(solution.transpose(1, 2)))


def _own_bias(program: Program, layer: Layer) -> fx.Node | None:
    """The bias, where no other layer reads it and each row of the matrix has one."""
    bias = _bias(layer) if layer.kind in ("linear", "convolution") else None
    tensor = None if bias is None else program.tensor(bias)
    if tensor is None:
        return None
    readers = {user for node in program.graph.nodes if program.tensor(node) is tensor for user in node.users}
    return bias if readers == {use.node for use in layer.uses} else None


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


def _columns_left(layer: Layer, inputs: Mask, with_bias: bool) -> Tensor:
    """[groups, columns (and one for the bias)]: whether a column of the matrix of the whole ``layer`` is left."""
    mask = torch.from_numpy(inputs)
    if layer.kind == "convolution":
        mask = mask.repeat(layer.groups, math.prod(layer.shape[2:]))
    mask = mask.view(layer.groups, -1)
    return torch.cat([mask, mask.new_ones(layer.groups, 1)], 1) if with_bias else mask


def _observed(pair: _Pair, runs: Runs) -> tuple[_Sums, _Sums] | None:
    """Of inputs that ``cut`` has now; None where the rows of both Programs are not the same ones."""
    sums = pair.no_sums()
    for number, (cut, whole) in enumerate(runs):
        x = pair.rows(pair.cut, pair.cut.uses[0], cut, len(runs))
        before = pair.rows(pair.whole, pair.whole.uses[0], whole, len(runs))
        if x.shape[1] != before.shape[1]:
            return None
        sums[_is_held_out(number)].add_rows(x, before @ pair.wanted)
    return sums


def _is_held_out(number: int) -> bool:
    return number % HELD_OUT == 1


# ---------------------------------------------------------------------- least squares


@dataclass
class _Sums:
    """All that least squares needs of rows of inputs X [groups, n, columns] and of outputs Y [groups, n, rows]."""

    gram: Tensor
    """X^T X."""
    cross: Tensor
    """X^T Y."""
    squares: float
    """The sum of Y^2."""

    @classmethod
    def none(cls, weights: Tensor) -> _Sums:
        """Of no rows yet, for ``weights`` [groups, columns, rows]."""
        cross = torch.zeros_like(weights, dtype=torch.float64)
        return cls(cross.new_zeros(*cross.shape[:2], cross.shape[1]), cross, 0.0)

    def add_rows(self, x: Tensor, y: Tensor) -> None:
        self.add(_Sums(x.mT @ x, x.mT @ y, float(y.double().square().sum())))

    def add(self, other: _Sums) -> None:
        self.gram += other.gram
        self.cross += other.cross
        self.squares += other.squares

    def total(self) -> float:
        """Of all squares: finite if all values are."""
        return float(self.gram.diagonal(dim1=1, dim2=2).sum()) + self.squares

    def solved(self, start: Tensor, dampings: Sequence[float]) -> Iterator[Tensor]:
        """[groups, columns, rows]: each minimizes |XW - Y|^2 + damping * mean square of X * |W - start|^2."""
        held = self.gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
        missing = self.cross - self.gram @ start.double()
        for damping in dampings:
            damped = self.gram.clone()
            damped.diagonal(dim1=1, dim2=2).add_(damping * held[:, None])
            torch.linalg.cholesky(damped, out=damped)
            yield start + torch.cholesky_solve(missing, damped).to(start)

    def error(self, weights: Tensor) -> float:
        """|XW - Y|^2 over |Y|^2."""
        weights = weights.double()
        error = (weights * (self.gram @ weights - 2 * self.cross)).sum() + self.squares
        return float(error) / self.squares if self.squares else 0.0
