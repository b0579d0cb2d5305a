"""A placement made real: quantize and dequantize nodes, and integer weights.

The operators are those of PyTorch's PT2E dialect, which lowerings know. torchao's own ``prepare_pt2e`` and
``convert_pt2e`` insert the same nodes; on ResNet-50 their peak was 0.8 GB higher (docs/pass-quantize-int8.md),
since they keep what they observe, observe constant weights in every batch, and fold these by running them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from planish.compiler.program import Program, add_tensor
from planish.compiler.scheme import IntegerType
from planish.passes.calibrators import Calibrator
from planish.passes.observe import Observed
from planish.passes.placement import Placement

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
decomposed = torch.ops.quantized_decomposed

SMALLEST_SCALE = float(torch.finfo(torch.float32).eps)


def insert(program: Program, placement: Placement, seen: Mapping[fx.Node, Observed], calibrator: Calibrator) -> Program:
    """``program`` with every value of ``placement`` quantized and dequantized."""
    work = _Insertion(program, seen, calibrator)
    work.weights(placement)
    work.edges(placement)
    work.results(placement)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    return program.with_graph(program.graph)


@dataclass
class _Insertion:
    program: Program
    seen: Mapping[fx.Node, Observed]
    calibrator: Calibrator
    parameters: dict[tuple[fx.Node, IntegerType], tuple[float, int]] = field(default_factory=dict)

    def weights(self, placement: Placement) -> None:
        """1. Constant weights become integers; a weight that several layers share is stored once."""
        made: dict[tuple[fx.Node, IntegerType, int], tuple[Argument, ...]] = {}
        for (weight, reader), (kind, axis) in placement.weights.items():
            key = (weight, kind, axis)
            if key not in made:
                made[key] = self._integer_weight(weight, kind, axis)
            dequantize, arguments = _dequantize_weight(kind, axis, made[key])
            with self.program.graph.inserting_before(reader):
                real = self._call(dequantize, arguments, reader)
            reader.replace_input_with(weight, real)

    def _integer_weight(self, weight: fx.Node, kind: IntegerType, axis: int) -> tuple[Argument, ...]:
        tensor = self.program.tensor(weight)
        assert tensor is not None
        scale = weight_scale(tensor, kind, axis)
        shape = [-1 if dim == axis else 1 for dim in range(tensor.ndim)] if scale.ndim else []
        steps = tensor.detach() / scale.reshape(shape)
        integers = steps.round_().clamp_(kind.minimum, kind.maximum).to(kind.dtype)
        name = str(weight.target)
        stored = add_tensor(self.program, f"{name}_int8", integers)
        if kind.granularity == "tensor":
            return stored, float(scale), 0
        zeros = add_tensor(self.program, f"{name}_zero", torch.zeros_like(scale, dtype=kind.dtype))
        return stored, add_tensor(self.program, f"{name}_scale", scale), zeros

    def edges(self, placement: Placement) -> None:
        """2. Float values that some readers take as integers: one pair for all of these."""
        pairs: dict[tuple[fx.Node, IntegerType], fx.Node] = {}
        for (producer, reader), kind in placement.edges.items():
            if producer in placement.results or producer in placement.shared:
                continue  # all its readers get the dequantized value below
            if (producer, kind) not in pairs:
                pairs[producer, kind] = self._pair(producer, producer, kind)
            reader.replace_input_with(producer, pairs[producer, kind])

    def results(self, placement: Placement) -> None:
        """3. Integer results, and what hands them on with the same scale: every reader gets the pair's value."""
        origins = {node: (node, kind) for node, kind in placement.results.items()}
        for node, source in placement.shared.items():
            origins[node] = origins[source]
        for node, (origin, kind) in origins.items():
            real = self._pair(node, origin, kind)
            _redirect_readers(node, real)

    def _pair(self, node: fx.Node, origin: fx.Node, kind: IntegerType) -> fx.Node:
        """Quantize and dequantize behind ``node``, with the parameters of ``origin``."""
        scale, zero = self._parameters(origin, kind)
        limits = (scale, zero, kind.minimum, kind.maximum, kind.dtype)
        after = node if node.op != "placeholder" else self.program.placeholders[-1]
        with self.program.graph.inserting_after(after):
            integers = self._call(decomposed.quantize_per_tensor.default, (node, *limits), node)
        with self.program.graph.inserting_after(integers):
            return self._call(decomposed.dequantize_per_tensor.default, (integers, *limits), node)

    def _parameters(self, origin: fx.Node, kind: IntegerType) -> tuple[float, int]:
        if kind.fixed is not None:
            return kind.fixed
        key = (origin, kind)
        if key not in self.parameters:
            low, high = self.seen[origin].range(self.calibrator, kind.levels, kind.symmetric)
            self.parameters[key] = scale_and_zero(low, high, kind)
        return self.parameters[key]

    def _call(self, target: Any, arguments: tuple[Any, ...], origin: fx.Node) -> fx.Node:
        node = self.program.graph.call_function(target, arguments)
        if "nn_module_stack" in origin.meta:
            node.meta["nn_module_stack"] = origin.meta["nn_module_stack"]
        return node


def _redirect_readers(node: fx.Node, real: fx.Node) -> None:
    """All that reads ``node`` reads ``real`` instead, but for the quantize node between the two."""
    quantize = real.args[0]
    node.replace_all_uses_with(real, delete_user_cb=lambda user: user is not quantize)


def _dequantize_weight(kind: IntegerType, axis: int, stored: tuple[Argument, ...]) -> tuple[Any, tuple[Any, ...]]:
    limits = (kind.minimum, kind.maximum, kind.dtype)
    if kind.granularity == "channel":
        return decomposed.dequantize_per_channel.default, (*stored, axis, *limits)
    return decomposed.dequantize_per_tensor.default, (*stored, *limits)


def weight_scale(weight: Tensor, kind: IntegerType, axis: int) -> Tensor:
    """Symmetric scales, [channels] or a scalar: the largest value lands on the last integer."""
    dims = [dim for dim in range(weight.ndim) if dim != axis or kind.granularity == "tensor"]
    largest = torch.maximum(weight.detach().amax(dims), -weight.detach().amin(dims))
    return (largest / kind.maximum).clamp_min(SMALLEST_SCALE).float()


def scale_and_zero(low: float, high: float, kind: IntegerType) -> tuple[float, int]:
    """Scale and zero point that map ``low .. high`` (zero inside) to the integers of ``kind``."""
    if kind.symmetric:
        zero = 0 if kind.minimum < 0 else (kind.minimum + kind.maximum + 1) // 2
        scale = max(-low / (zero - kind.minimum), high / (kind.maximum - zero))
        return max(scale, SMALLEST_SCALE), zero
    scale = max((high - low) / kind.levels, SMALLEST_SCALE)
    return scale, min(max(kind.minimum - round(low / scale), kind.minimum), kind.maximum)
