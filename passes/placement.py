"""Where quantize and dequantize go: from the graph and the backend's scheme alone.

1. An operator of the scheme runs in integers if its weight (where it has one) is a constant, its activations are
   float tensors, and nothing of what follows keeps it float. What it reads becomes integers for all readers if it
   writes integers itself (convolution), and for it alone if it writes floats (linear, between float residuals).
2. An operator without a weight (add, cat, pooling) joins only if all its activations are integers already:
   quantizing floats for it would cost more than it gains.
3. A transparent operator hands integers on: its result shares the scale of its input.
4. The function that an operator fuses (relu …) belongs to it: what is quantized is the fused result.
5. A zero padding in front of a convolution belongs to it as well: its input is quantized, not its result.
6. A sum that an operator absorbs (a residual) reads its other operand, the shortcut, as integers. Where two operators
   could absorb it, the deeper one does: it runs last.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.padding import PADS, zero_padding
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.scheme import FloatPrefix, IntegerOp, IntegerType, QuantizationScheme
from planish.passes.module_names import named

aten = torch.ops.aten


@dataclass
class Placement:
    """Which values become integers. Edges are (producer, consumer) pairs."""

    edges: dict[tuple[fx.Node, fx.Node], IntegerType] = field(default_factory=dict)
    weights: dict[tuple[fx.Node, fx.Node], tuple[IntegerType, int]] = field(default_factory=dict)
    results: dict[fx.Node, IntegerType] = field(default_factory=dict)
    shared: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Transparent node -> the node that it has its integers from."""
    decided: list[tuple[fx.Node, str, str]] = field(default_factory=list)
    """(node, outcome, reason) for the Report."""

    def observed(self) -> set[fx.Node]:
        """The nodes whose values have to be seen on calibration data."""
        read = {producer: kind for (producer, _), kind in self.edges.items() if producer not in self.shared}
        return {node for node, kind in (read | self.results).items() if kind.fixed is None}


def place(program: Program, scheme: QuantizationScheme, keep_float: Sequence[str] = ()) -> Placement:
    """The placement for ``program``, whose nodes carry their shapes. ``keep_float`` are source module patterns."""
    placement = Placement()
    fused: set[fx.Node] = set()
    depths = _depths(program)
    for node in program.calls():
        if node in fused:
            continue
        op = scheme.find(node.target)
        if op is None:
            _hand_on(node, scheme, placement)
            _quantize_shortcut(node, scheme, placement, depths)
            continue
        why_not = _obstacle(program, node, op, scheme, placement, keep_float)
        if why_not:
            _hand_on(node, scheme, placement)
            placement.decided.append((node, "float", why_not))
            continue
        tail = _fused_tail(node, op)
        fused.update(tail)
        _quantize(program, node, op, tail[-1] if tail else node, scheme, placement)
    return placement


# ---------------------------------------------------------------------- which operators


def _obstacle(
    program: Program,
    node: fx.Node,
    op: IntegerOp,
    scheme: QuantizationScheme,
    placement: Placement,
    keep_float: Sequence[str],
) -> str:
    """Why ``node`` stays float; "" if it does not."""
    if named(source_module(node), keep_float):
        return "kept float on request"
    operands = [*_activations(node, op)]
    if (op.activations and not operands) or not all(_is_float(operand) for operand in operands):
        return "its inputs are not float tensors"
    if op.weight is None:
        computed = [operand for operand in operands if not _becomes_constant(program, operand, op)]
        if not computed or not all(_is_integer(operand, placement) for operand in computed):
            return "not all of its inputs are integers already"
        return _shape_obstacle(node, op, operands)
    weight = program.tensor(node.args[op.weight])
    if weight is None:
        return "its weight is computed, not a constant"
    if not weight.dtype.is_floating_point or weight.dtype is not torch.float32:
        return f"its weight is {weight.dtype}"
    if weight.ndim >= 3 and min(weight.shape[0], _inputs(weight, node)) < scheme.min_channels:
        return f"fewer than {scheme.min_channels} channels"
    if (
        scheme.prefix is not None
        and _faster_in_float(node, weight, op, scheme.prefix)
        and _in_float_prefix(node, placement)
    ):
        return f"at the start of the network, where {scheme.prefix.reason}"
    return ""


def _inputs(weight: Tensor, node: fx.Node) -> int:
    groups = node.args[6] if len(node.args) > 6 and isinstance(node.args[6], int) else 1
    return int(weight.shape[1]) * groups


def _becomes_constant(program: Program, operand: fx.Node, op: IntegerOp) -> bool:
    return op.beside is not None and program.tensor(operand) is not None


def _shape_obstacle(node: fx.Node, op: IntegerOp, operands: Sequence[fx.Node]) -> str:
    if node.target is aten.mean.dim and not op.any_dims:
        rank = operands[0].meta["val"].ndim
        asked = node.args[1] if len(node.args) > 1 else None
        dims = asked if isinstance(asked, (list, tuple)) else [*range(rank)] if asked is None else [asked]
        if rank < 3 or sorted(dim % rank for dim in dims) != [*range(2, rank)]:
            return "a mean over other than all spatial dimensions"
    if node.target is aten.adaptive_avg_pool2d.default and any(size != 1 for size in node.args[1]):  # type: ignore[union-attr]
        return "adaptive pooling to more than one pixel"
    lonely = len(operands) < 2 and op.beside is None
    if node.target is aten.add.Tensor and (lonely or node.kwargs.get("alpha", 1) != 1):
        return "not the sum of two tensors"
    return ""


def _faster_in_float(node: fx.Node, weight: Tensor, op: IntegerOp, prefix: FloatPrefix) -> bool:
    reduction = math.prod(weight.shape[1:])
    if len([node, *_fused_tail(node, op)][-1].users) > 1:
        return False  # a residual that starts in float would drag a conversion along through all its sums
    pointwise = all(size == 1 for size in weight.shape[2:])
    return weight.ndim >= 3 and not pointwise and reduction < prefix.reduction and weight.shape[0] <= prefix.channels


def _in_float_prefix(node: fx.Node, placement: Placement) -> bool:
    """Whether no ancestor of ``node`` is an integer: one float layer between integers would cost two conversions."""
    seen, waiting = set(), [*node.all_input_nodes]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if _is_integer(current, placement):
            return False
        waiting.extend(current.all_input_nodes)
    return True


# ---------------------------------------------------------------------- what is quantized


def _quantize(
    program: Program, node: fx.Node, op: IntegerOp, tail: fx.Node, scheme: QuantizationScheme, placement: Placement
) -> None:
    for index, operand in enumerate(_activations(node, op)):
        if op.beside is not None and _becomes_constant(program, operand, op):
            placement.weights[operand, node] = (op.beside, 0)
            continue
        kind = op.activation_types[index] if op.activation_types else scheme.activation
        if op.quantizes_output and not _is_integer(operand, placement):
            placement.results[operand] = kind
        placement.edges[operand, _reader(node, operand)] = kind
    if op.weight is not None:
        weight = node.args[op.weight]
        assert isinstance(weight, fx.Node)
        placement.weights[weight, node] = (op.weight_type or scheme.weight, op.weight_axis)
    if op.quantizes_output:
        placement.results[tail] = op.result_type or scheme.activation
    inside = f", with {op_name(tail)}" if tail is not node else ""
    placement.decided.append((node, "int8", f"runs in integers{inside}"))


def _quantize_shortcut(
    node: fx.Node, scheme: QuantizationScheme, placement: Placement, depths: dict[fx.Node, int]
) -> None:
    operands = {operand for operand in node.args[:2] if isinstance(operand, fx.Node)}
    absorbers = [operand for operand in operands if _absorbs(operand, node, scheme, placement)]
    if len(operands) < 2 or not absorbers or node.kwargs.get("alpha", 1) != 1:
        return
    absorber = max(absorbers, key=depths.__getitem__)
    (shortcut,) = operands - {absorber}
    if _is_float(shortcut) and shortcut.meta["val"].shape == node.meta["val"].shape:
        placement.edges[shortcut, node] = scheme.activation
        placement.decided.append((node, "int8", f"its shortcut is read in integers, with {op_name(absorber)}"))


def _absorbs(operand: fx.Node, node: fx.Node, scheme: QuantizationScheme, placement: Placement) -> bool:
    op = scheme.find(operand.target)
    if op is None or node.target not in op.absorbs_sums or len(operand.users) > 1:
        return False
    return any(reader is operand for _, reader in placement.weights)  # it runs in integers


def _depths(program: Program) -> dict[fx.Node, int]:
    """How many nodes lie one behind the other from the inputs to each node."""
    depths: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        depths[node] = 1 + max((depths[source] for source in node.all_input_nodes), default=0)
    return depths


def _activations(node: fx.Node, op: IntegerOp) -> Iterator[fx.Node]:
    """The activation operands: behind a zero padding, and each of a list (cat)."""
    for position in op.activations:
        argument: Any = node.args[position] if position < len(node.args) else None
        for operand in argument if isinstance(argument, (list, tuple)) else [argument]:
            if isinstance(operand, fx.Node):
                yield operand.args[0] if _is_absorbed(operand, node) else operand  # type: ignore[misc]


def _reader(node: fx.Node, operand: fx.Node) -> fx.Node:
    """The node that reads the quantized operand: ``node``, or the padding in front of it."""
    return (
        node if operand in node.all_input_nodes else next(n for n in node.all_input_nodes if n.args[:1] == (operand,))
    )


def _is_absorbed(operand: fx.Node, node: fx.Node) -> bool:
    return zero_padding(operand) is not None and len(operand.users) == 1 and "conv" in str(node.target)


def _hand_on(node: fx.Node, scheme: QuantizationScheme, placement: Placement) -> None:
    mover = node.args[0] if node.target is operator.getitem else node  # one of the parts of a split
    source = mover.args[0] if isinstance(mover, fx.Node) and mover.args else None
    moves = isinstance(mover, fx.Node) and mover.target in scheme.transparent
    if not moves or not isinstance(source, fx.Node) or not _is_integer(source, placement):
        return
    if node.target in PADS and (zero_padding(node) is None or any(_is_absorbed(node, user) for user in node.users)):
        return
    if isinstance(node.meta["val"], Tensor):
        placement.shared[node] = source


def _is_integer(node: fx.Node, placement: Placement) -> bool:
    return node in placement.results or node in placement.shared


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _fused_tail(node: fx.Node, op: IntegerOp) -> list[fx.Node]:
    user = next(iter(node.users), None)
    return [user] if len(node.users) == 1 and user is not None and user.target in op.fuses else []
