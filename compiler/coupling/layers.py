"""Makes an op of each layer of a recurrent op, so that each layer can get a hidden size of its own.

The layers of one op share the tensor of their initial states, [layers x directions, batch, hidden]. Those of one layer
share it still: both directions have one hidden size. Outputs stay the same.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.program import MODE, ModeArgument, arguments
from planish.compiler.shapes import fake_like, tensor_of

aten = torch.ops.aten
_RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)


def part_layers(graph: fx.Graph) -> None:
    for node in [*graph.nodes]:
        if node.target in _RECURRENT and arguments(node)["num_layers"] > 1:
            with graph.inserting_before(node):
                output, ends = _layer_by_layer(graph, node)
                for user in [*node.users]:
                    _replace(graph, user, output if user.args[1] == 0 else ends[int(user.args[1]) - 1])
            graph.erase_node(node)


def _layer_by_layer(graph: fx.Graph, node: fx.Node) -> tuple[fx.Node, list[list[fx.Node]]]:
    """The output of the last layer; of each kind of state the last of every layer."""
    given, values = arguments(node), node.meta["val"]
    layers, directions = given["num_layers"], 1 + given["bidirectional"]
    initial = given["hx"] if isinstance(given["hx"], (list, tuple)) else [given["hx"]]
    tensors = len(given["params"]) // layers
    ends: list[list[fx.Node]] = [[] for _ in initial]
    output = given["input"]
    results = [values[0], *(fake_like(value, (directions, *value.shape[1:])) for value in values[1:])]
    for layer in range(layers):
        if layer and given["dropout"]:
            output = _called(graph, aten.dropout.default, (output, given["dropout"], given["train"]), node, values[0])
            output.meta[MODE] = ModeArgument(2, "train", training=True, evaluation=False)
        states = [
            _of_layer(graph, state, layer, directions, value) for state, value in zip(initial, results[1:], strict=True)
        ]
        args = (
            output, states if isinstance(given["hx"], (list, tuple)) else states[0],
            given["params"][layer * tensors : (layer + 1) * tensors], given["has_biases"], 1, 0.0, given["train"],
            given["bidirectional"], given["batch_first"],
        )  # fmt: skip
        whole = _called(graph, node.target, args, node, results)
        output, *last = [_called(graph, operator.getitem, (whole, index), node, value)
                         for index, value in enumerate(results)]  # fmt: skip
        for end, state in zip(ends, last, strict=True):
            end.append(state)
    return output, ends


def _of_layer(graph: fx.Graph, state: fx.Node, layer: int, directions: int, value: Tensor) -> fx.Node:
    """The initial states of one layer; zeros are made anew, because one tensor of them has one hidden size."""
    if state.target is aten.zeros.default:
        zeros = graph.node_copy(state)
        zeros.update_arg(0, [directions, *arguments(state)["size"][1:]])
        zeros.meta["val"] = value
        return zeros
    bounds = layer * directions, (layer + 1) * directions
    return _called(graph, aten.slice.Tensor, (state, 0, *bounds), state, value)


def _replace(graph: fx.Graph, item: fx.Node, found: fx.Node | Sequence[fx.Node]) -> None:
    """``item`` of the op is ``found``, or the states of all layers one behind the other."""
    if isinstance(found, fx.Node):
        item.replace_all_uses_with(found)
    elif item.users:
        for user in [*item.users]:
            index = _selected(user)
            if index is not None:
                layer, direction = divmod(index, tensor_of(found[0]).shape[0])
                user.update_arg(0, found[layer])
                user.update_arg(2, direction)
        if item.users:
            item.replace_all_uses_with(_called(graph, aten.cat.default, ([*found], 0), item, tensor_of(item)))
    graph.erase_node(item)


def _selected(user: fx.Node) -> int | None:
    """Which state ``user`` selects, counted from the front."""
    if user.target is not aten.select.int or user.args[1] != 0 or not isinstance(user.args[2], int):
        return None
    return user.args[2] % tensor_of(user.args[0]).shape[0]  # type: ignore[arg-type]


def _called(graph: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node, value: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta = {**like.meta, "val": value}
    if target is not like.target:
        node.meta.pop(MODE, None)
    return node
