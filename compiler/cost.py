"""What a Program costs: multiply-accumulates (MACs), parameters and bytes, by node and by source module.

Which ops have MACs is in macs.py; what stands in the sub-graphs of control flow counts 0. A node that is
computed from constants alone costs nothing, because backends fold it: its tensors belong to the node that
reads the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from planish.compiler.constants import Constants
from planish.compiler.macs import Shape, macs
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.shapes import ensure_shapes


@dataclass(frozen=True)
class NodeCost:
    """One call of an operator.

    ``parameters`` and ``parameter_bytes`` are those that no earlier node has read: a tied tensor counts once.
    ``parameters`` counts learned values (integers where they are quantized), ``parameter_bytes`` the bytes of
    all constant tensors (running statistics and scales too), ``activation_bytes`` those of the inputs and the
    results that are no constants.
    """

    node: str
    op: str
    module: str
    macs: int
    parameters: int
    parameter_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Totals:
    """Sums over nodes."""

    macs: int
    parameters: int
    parameter_bytes: int
    activation_bytes: int


def node_costs(program: Program, batch: int = 1) -> list[NodeCost]:
    """The cost of each call of ``program`` for one call with ``batch`` rows, in the order of the graph.

    A Program with a fixed batch costs what it costs at that batch. Other dynamic axes have their example
    sizes.
    """
    return Costs(program, batch).of_nodes()


def totals(program: Program, batch: int = 1) -> Totals:
    """The cost of the whole ``program`` for one call with ``batch`` rows."""
    return _sum(node_costs(program, batch))


def by_module(program: Program, batch: int = 1) -> dict[str, Totals]:
    """The same cost by source module (``layer1.0.conv2``), in the order of their first nodes."""
    groups: dict[str, list[NodeCost]] = {}
    for cost in node_costs(program, batch):
        groups.setdefault(cost.module, []).append(cost)
    return {module: _sum(costs) for module, costs in groups.items()}


def _sum(costs: Iterable[NodeCost]) -> Totals:
    listed = [*costs]
    return Totals(
        sum(cost.macs for cost in listed),
        sum(cost.parameters for cost in listed),
        sum(cost.parameter_bytes for cost in listed),
        sum(cost.activation_bytes for cost in listed),
    )


# ---------------------------------------------------------------------- one program at one batch


class Costs:
    """The sizes of all values of a Program at one batch, and what follows from them."""

    def __init__(self, program: Program, batch: int) -> None:
        ensure_shapes(program)
        self.program = program
        self._symbols = _batch_symbols(program)
        self._batch = batch
        self.batch = batch if self._symbols else program.example_inputs.batch_size

    def of_nodes(self) -> list[NodeCost]:
        seen: set[int] = set()
        return [self._of_node(node, seen) for node in self.program.calls()]

    def _of_node(self, node: fx.Node, seen: set[int]) -> NodeCost:
        fresh = {id(tensor): (tensor, learned) for tensor, learned in self.tensors_read(node) if id(tensor) not in seen}
        seen.update(fresh)
        return NodeCost(
            node=node.name,
            op=op_name(node),
            module=source_module(node),
            macs=self.macs(node),
            parameters=sum(tensor.numel() for tensor, learned in fresh.values() if learned),
            parameter_bytes=sum(tensor.nbytes for tensor, _ in fresh.values()),
            activation_bytes=sum(
                self.bytes(value) for value in [*self.activations(node), node] if not self.folds(node)
            ),
        )

    def folds(self, node: fx.Node) -> bool:
        return node in self._constants

    @cached_property
    def _constants(self) -> Constants:
        return Constants(self.program)

    def activations(self, node: fx.Node) -> list[fx.Node]:
        """The inputs of ``node`` that are tensors and no constants."""
        return [arg for arg in node.all_input_nodes if not self.folds(arg) and self.shapes(arg)]

    def tensors_read(self, node: fx.Node) -> Iterator[tuple[Tensor, bool]]:
        """The constant tensors that ``node`` computes with, and whether each holds learned values."""
        if self.folds(node):
            return
        waiting = [(arg, False) for arg in node.all_input_nodes if self.folds(arg)]
        while waiting:
            arg, dequantized = waiting.pop(0)
            tensor = self.program.tensor(arg)
            if tensor is not None:
                yield tensor, dequantized or isinstance(tensor, nn.Parameter)
            for index, inner in enumerate(arg.all_input_nodes):
                waiting.append((inner, dequantized or (is_dequantize(arg) and index == 0)))

    # ------------------------------------------------------------------ sizes

    def bytes(self, node: fx.Node) -> int:
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.shapes(node))

    def shapes(self, node: fx.Node) -> list[tuple[Shape, torch.dtype]]:
        """Shape and dtype of each tensor in the value of ``node``."""
        tensors = [leaf for leaf in pytree.tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
        return [(tuple(self.size(size) for size in tensor.shape), tensor.dtype) for tensor in tensors]

    def shape(self, node: Any) -> Shape:
        return self.shapes(node)[0][0]

    def size(self, size: int | torch.SymInt) -> int:
        if isinstance(size, int):
            return size
        examples = size.node.shape_env.backed_var_to_val
        known = {  # what the data decides (how many pixels a mask has) counts as the batch does
            symbol: self._batch if symbol in self._symbols else examples.get(symbol, self._batch)
            for symbol in size.node.expr.free_symbols
        }
        return int(size.node.expr.subs(known))

    def macs(self, node: fx.Node) -> int:
        return 0 if self.folds(node) else macs(node, self.shape)


def _batch_symbols(program: Program) -> set[Any]:
    found: set[Any] = set()
    for node in program.placeholders:
        for axis, name in program.dynamic_axes.get(node.name, {}).items():
            size = node.meta["val"].shape[axis]
            if name == "batch" and isinstance(size, torch.SymInt):
                found.update(size.node.expr.free_symbols)
    return found


def is_dequantize(node: fx.Node) -> bool:
    return op_name(node).startswith("quantized_decomposed.dequantize")


def is_quantize(node: fx.Node) -> bool:
    return op_name(node).startswith("quantized_decomposed.quantize")
