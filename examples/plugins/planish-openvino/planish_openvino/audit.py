"""What OpenVINO really makes of a file: the model that it executes, asked for the precision of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import fx

from planish.compiler.program import Program, op_name, source_module
from planish.compiler.report import Decision
from planish.compiler.scheme import QuantizationScheme

if TYPE_CHECKING:
    import openvino

_INTEGERS = frozenset({"u8", "i8"})
_MOVES = frozenset(
    {"Reorder", "Reshape", "Transpose", "Convert", "Split", "StridedSlice", "Pad", "Input", "Output", "Const"}
)


def float_fallbacks(
    model: openvino.CompiledModel, program: Program, scheme: QuantizationScheme
) -> tuple[list[Decision], list[str]]:
    """The nodes of ``program`` that are meant for INT8 and that OpenVINO runs in float, and a sentence that sums up.

    OpenVINO tells which of the file's operators went into a layer, by the names that they had in the file: those
    of the nodes. A node whose name is gone (a constant folded, the last operator renamed) is counted as such.
    """
    meant = [node for node in program.calls() if _is_meant(node, scheme)]
    if not meant:
        return [], []
    layers = _layers(model)
    floats = [node for node in meant if node.name in layers and layers[node.name][1] not in _INTEGERS]
    decisions = [
        Decision(
            module=source_module(node), op=op_name(node), node=node.name, outcome="float",
            reason="OpenVINO runs it as {} in {}".format(*layers[node.name]),
        )
        for node in floats
    ]  # fmt: skip
    lost = sum(node.name not in layers for node in meant)
    told = f"OpenVINO runs {len(meant) - len(floats) - lost} of the {len(meant)} operators meant for INT8 in integers"
    return decisions, [f"{told}; {lost} cannot be found by name in its model." if lost else f"{told}."]


def _layers(model: openvino.CompiledModel) -> dict[str, tuple[str, str]]:
    """Name of a node -> (kind, precision) of the layer that computes it."""
    found: dict[str, tuple[str, str]] = {}
    for layer in model.get_runtime_model().get_ordered_ops():
        told = {key: str(getattr(value, "value", value)) for key, value in layer.get_rt_info().items()}
        if told["layerType"] in _MOVES:
            continue
        for name in told.get("originalLayersNames", "").split(","):
            # "conv2d_1/WithoutBiases" and "linear.1" are parts of what the nodes conv2d_1 and linear became
            found.setdefault(name.split("/")[0].split(".")[0], (told["layerType"], told["runtimePrecision"]))
    return found


# ---------------------------------------------------------------------- what is meant for INT8


def _is_meant(node: fx.Node, scheme: QuantizationScheme) -> bool:
    """Whether all that the scheme wants to be integers in ``node`` is dequantized just before it."""
    op = scheme.find(node.target)
    if op is None:
        return False
    positions = [*op.activations, *([] if op.weight is None else [op.weight])]
    operands = [operand for position in positions for operand in _nodes(node.args[position : position + 1])]
    return bool(operands) and all(_is_dequantized(operand, scheme) for operand in operands)


def _nodes(arguments: Iterable[Any]) -> Iterator[fx.Node]:
    for argument in arguments:
        if isinstance(argument, fx.Node):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _nodes(argument)


def _is_dequantized(node: fx.Node, scheme: QuantizationScheme) -> bool:
    while node.target in scheme.transparent and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return "dequantize" in op_name(node)
