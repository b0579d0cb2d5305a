"""Layers that can be sparse: their weights as matrices, and the rows of inputs that these multiply."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from planish.compiler.program import Program, arguments, op_name, source_module
from planish.compiler.two_four import has_kernel
from planish.passes.sparsity.patterns import NOfM, Pattern

aten = torch.ops.aten

Kind = Literal["linear", "product", "convolution", "transposed convolution"]


@dataclass(frozen=True)
class Operands:
    """How an op names what it multiplies."""

    kind: Kind
    input: str
    weight: str


_CONVOLUTION = Operands("convolution", "input", "weight")
_TRANSPOSED = Operands("transposed convolution", "input", "weight")
OPERANDS: Mapping[Any, Operands] = {
    aten.linear: Operands("linear", "input", "weight"),
    aten.matmul: Operands("product", "self", "other"),
    aten.mm: Operands("product", "self", "mat2"),
    aten.addmm: Operands("product", "mat1", "mat2"),
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), _CONVOLUTION),
    **dict.fromkeys((aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d), _TRANSPOSED),
}


@dataclass(frozen=True)
class Use:
    """One call that multiplies by the weight."""

    node: fx.Node
    input: fx.Node
    weight: fx.Node


@dataclass(frozen=True)
class Layer:
    """A constant weight, and the calls that multiply by it (several, where layers share it).

    As a matrix it is [groups, rows, columns]: rows are outputs, columns what is summed over, input channels innermost,
    which is the order in which kernels read them.
    """

    uses: tuple[Use, ...]
    kind: Kind
    groups: int
    shape: tuple[int, ...]

    @property
    def node(self) -> fx.Node:
        return self.uses[0].node

    @property
    def name(self) -> str:
        return source_module(self.node) or weight_name(self)

    @property
    def inputs(self) -> int:
        """Input channels that one output sums over."""
        if self.kind in ("product", "transposed convolution"):
            return self.shape[0] // self.groups
        return self.shape[1]

    @property
    def outputs(self) -> int:
        if self.kind == "transposed convolution":
            return self.shape[1] * self.groups
        return self.shape[1] if self.kind == "product" else self.shape[0]

    @property
    def input_axis(self) -> int:
        """The axis of the weight with the input channels."""
        return 0 if self.kind in ("product", "transposed convolution") else 1

    def matrix(self, weight: Tensor) -> Tensor:
        """``weight`` as [groups, rows, columns]."""
        if self.kind == "transposed convolution":  # every tap is an output of its own; rows are taps x channels
            taps = weight.reshape(self.groups, self.inputs, -1, weight[0, 0].numel())
            return taps.permute(0, 3, 2, 1).flatten(1, 2)
        if self.kind == "product":
            return weight.t()[None]
        taps = weight.reshape(self.groups, -1, self.inputs, weight[0, 0].numel())
        return taps.transpose(2, 3).flatten(2)  # columns are taps x channels

    def weight(self, matrix: Tensor) -> Tensor:
        """The inverse of ``matrix``, contiguous."""
        if self.kind == "transposed convolution":
            taps: Tensor = matrix.unflatten(1, (-1, self.outputs // self.groups)).permute(0, 3, 2, 1)
            return taps.reshape(self.shape).contiguous()
        if self.kind == "product":
            return matrix[0].t().contiguous()
        taps = matrix.unflatten(2, (-1, self.inputs)).transpose(2, 3)
        return taps.reshape(self.shape).contiguous()


Refused = tuple[fx.Node, str]
"""A call that multiplies by what cannot be sparse, and why not."""


def weight_name(layer: Layer) -> str:
    """The (first) name under which the Program has the weight."""
    return str(layer.uses[0].weight.target)


def find_layers(program: Program) -> tuple[list[Layer], list[Refused]]:
    """The layers of ``program`` in order, and the calls that are none."""
    found: dict[int, list[Use]] = {}
    refused: list[Refused] = []
    for node in program.calls():
        operands = OPERANDS.get(getattr(node.target, "overloadpacket", None))
        if operands is None:
            continue
        given = arguments(node)
        weight = program.tensor(given[operands.weight])
        reason = _refusal(program, given[operands.weight], weight, operands)
        if weight is None or reason:
            if reason and operands.kind != "product":  # a product of two activations has no weight at all
                refused.append((node, reason))
            continue
        found.setdefault(id(weight), []).append(Use(node, given[operands.input], given[operands.weight]))
    layers = []
    for uses in found.values():
        kinds = {OPERANDS[use.node.target.overloadpacket].kind for use in uses}  # type: ignore[union-attr]
        groups = {arguments(use.node).get("groups", 1) for use in uses}
        if len(kinds) > 1 or len(groups) > 1:
            refused += [(use.node, "ops that sum over other axes share its weight") for use in uses]
            continue
        tensor = program.tensor(uses[0].weight)
        assert tensor is not None
        layers.append(Layer(tuple(uses), kinds.pop(), groups.pop(), tuple(tensor.shape)))
    return layers, refused


def _refusal(program: Program, argument: Any, weight: Tensor | None, operands: Operands) -> str:
    if weight is None:
        return "its weight is computed, not a constant"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    if operands.kind == "product" and weight.ndim != 2:
        return "its weight is no matrix"
    readers = [node for node in program.graph.nodes if program.tensor(node) is weight for node in node.users]
    others = [reader for reader in readers if not _multiplies_by(reader, program, weight)]
    return f"its weight is also read by {op_name(others[0])}" if others else ""


def _multiplies_by(node: fx.Node, program: Program, weight: Tensor) -> bool:
    operands = OPERANDS.get(getattr(node.target, "overloadpacket", None))
    return operands is not None and program.tensor(arguments(node)[operands.weight]) is weight


# ---------------------------------------------------------------------- which of them


def choose(
    layers: Sequence[Layer], pattern: Pattern, keep: Sequence[str], min_channels: int
) -> tuple[list[Layer], list[Refused]]:
    """The layers that get ``pattern``, and the calls of the others with the reason."""
    chosen, left = [], []
    for layer in layers:
        reason = next(_obstacles(layer, pattern, keep, min_channels), "")
        if reason:
            left += [(use.node, reason) for use in layer.uses]
        else:
            chosen.append(layer)
    return chosen, left


def _obstacles(layer: Layer, pattern: Pattern, keep: Sequence[str], min_channels: int) -> Iterator[str]:
    modules = [source_module(use.node) for use in layer.uses]
    if any(fnmatch.fnmatch(name, each) or name.startswith(f"{each}.") for name in modules for each in keep):
        yield "kept dense on request"
    if min(layer.inputs * layer.groups, layer.outputs) < min_channels:
        yield f"fewer than {min_channels} channels ({layer.inputs * layer.groups} in, {layer.outputs} out)"
    if isinstance(pattern, NOfM):
        yield from _unfit_for_groups(layer, pattern)
    elif layer.outputs // layer.groups % pattern.rows or layer.inputs % pattern.width:
        yield f"{layer.outputs} x {layer.inputs} channels do not divide into {pattern}"


def _unfit_for_groups(layer: Layer, pattern: NOfM) -> Iterator[str]:
    if layer.inputs % pattern.group:
        yield f"its {layer.inputs} input channels are no multiple of {pattern.group}"
    if not pattern.is_two_four:
        return
    if layer.kind == "transposed convolution" or layer.groups > 1:
        grouped = "convolutions with groups" if layer.groups > 1 else "transposed convolutions"
        yield f"no 2:4 kernel is known for {grouped}"
    if not has_kernel(layer.inputs, layer.outputs):
        yield f"2:4 kernels take 16n input and 8n output channels; it has {layer.inputs} and {layer.outputs}"
