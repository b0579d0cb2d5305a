"""Biases that make up for what rounding does to the mean of each channel (arXiv:1906.04721, section 4.2).

Rounded weights and clipped activations shift the means of a layer's outputs, and what follows saw no such means in
training. Depthwise convolutions, whose channels have few weights each, are off the most. Layer by layer, each with the
corrections in front of it, the difference of the means is added to the bias.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.cost import is_dequantize
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, add_tensor, arguments

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed

_CHANNELS: Mapping[Any, int] = {
    aten.linear.default: -1,
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), 1),
    **dict.fromkeys((aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding), 1),
    **dict.fromkeys((aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input), 1),
}
"""Operators with a bias as their third argument -> the dimension of their outputs that has the channels."""


class ChannelMeans:
    """What the layers of ``program`` put out on its first ``batches``: means of each channel, [rows, channels]."""

    def __init__(self, program: Program, batches: int) -> None:
        self._names = {node.name for node in program.calls() if node.target in _CHANNELS and not _is_integer(node)}
        self._batches = batches
        self.of: dict[str, list[Tensor]] = {name: [] for name in self._names}
        """Name of a layer whose weight is no integer yet -> its means, batch by batch."""

    def see(self, node: fx.Node, value: Any) -> None:
        if node.name in self._names and len(self.of[node.name]) < self._batches:
            self.of[node.name].append(_means(value, _CHANNELS[node.target]))


def correct_biases(program: Program, wanted: ChannelMeans, batches: Iterable[Inputs]) -> Program:
    """``program`` with other biases in the layers that have got integer weights; its graph is used up.

    ``wanted``: of the Program before its values were quantized, on the same batches; the layers have the same names.
    ``batches``: a few rows; each layer corrects by what it has seen so far.
    """
    layers = {node.name for node in program.calls() if node.name in wanted.of and _is_integer(node)}
    given = _CorrectedMeans(program, layers, wanted)
    with torch.no_grad():
        for batch, inputs in enumerate(batches):
            given.batch = batch
            given.run(*inputs.leaves(), enable_io_processing=False)
    for node in [*program.calls()]:
        if node.name in given.errors:
            _add_to_bias(program, node, given.errors[node.name].mean())
    program.graph.eliminate_dead_code()
    return program.with_graph(program.graph)


def _is_integer(layer: fx.Node) -> bool:
    weight = layer.args[1]
    return isinstance(weight, fx.Node) and is_dequantize(weight)


class _CorrectedMeans(fx.Interpreter):
    """Outputs of layers move by what their means are off on average, before others read them."""

    def __init__(self, program: Program, layers: set[str], wanted: ChannelMeans) -> None:
        super().__init__(program.graph_module)
        self.layers, self.wanted, self.batch = layers, wanted, 0
        self.errors: dict[str, _Errors] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.target is decomposed.quantize_per_tensor.default:
            return self._rounded(n)
        if n.target is decomposed.dequantize_per_tensor.default and _is_pair(n):
            return self.fetch_args_kwargs_from_env(n)[0][0]
        value = super().run_node(n)
        if n.name not in self.layers or value.ndim < 2:
            return value
        channels = _CHANNELS[n.target]
        errors = self.errors.setdefault(n.name, _Errors())
        errors.see(self.wanted.of[n.name][self.batch] - _means(value, channels))
        return value + errors.mean().reshape([-1 if dim == channels % value.ndim else 1 for dim in range(value.ndim)])

    def _rounded(self, node: fx.Node) -> Tensor:
        """Quantized and dequantized at once, in place: a quarter of the memory traffic of the two operators."""
        value, scale, zero, low, high, _ = self.fetch_args_kwargs_from_env(node)[0]
        rounded: Tensor = value.mul(1 / scale).round_().clamp_(low - zero, high - zero).mul_(scale)
        return rounded


def _is_pair(node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and source.target is decomposed.quantize_per_tensor.default


def _means(value: Tensor, channels: int) -> Tensor:
    others = [dim for dim in range(1, value.ndim) if dim != channels % value.ndim]
    return value.mean(others) if others else value


class _Errors:
    """Errors of the means of channels, row by row."""

    def __init__(self) -> None:
        self.rows = 0
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def see(self, errors: Tensor) -> None:
        self.rows += len(errors)
        self.sum = self.sum + errors.sum(0)
        self.squares = self.squares + errors.square().sum(0)

    def mean(self) -> Tensor:
        """The mean, less what is likely to be chance: shrunk as James and Stein do (1961), channel by channel."""
        assert isinstance(self.sum, Tensor) and isinstance(self.squares, Tensor)
        mean = self.sum / self.rows
        of_mean = (self.squares / self.rows - mean.square()).clamp_min(0) / max(self.rows - 1, 1)
        if self.rows < 2:
            return torch.zeros_like(mean)
        return mean * (1 - of_mean / mean.square()).clamp_min(0).nan_to_num(0.0)


def _add_to_bias(program: Program, node: fx.Node, change: Tensor) -> None:
    bias = arguments(node).get("bias")
    old = program.tensor(bias) if isinstance(bias, fx.Node) else None
    if isinstance(bias, fx.Node) and old is None:
        return  # computed, not a constant
    weight = node.args[1]
    name = f"{bias.target if isinstance(bias, fx.Node) else node.name + '_bias'}_corrected"
    added = add_tensor(program, name, change if old is None else old.detach() + change)
    if "bias" in node.kwargs:
        node.update_kwarg("bias", added)
    else:
        node.args = (node.args[0], weight, added, *node.args[3:])
