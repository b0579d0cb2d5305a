"""Recurrent layers: LSTM, GRU and RNN, of any number of layers, in one direction or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_onnx.emitter import Emitter, Rule, Value
from planish.compiler.scheme import Operator

aten = torch.ops.aten

# Where ONNX has its gates among PyTorch's: LSTM i f g o -> i o f g, GRU r z n -> z r n.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def recurrent(kind: str, activation: str = "") -> Rule:
    def rule(
        e: Emitter, x: Value, states: Any, weights: Sequence[Value], has_biases: bool, layers: int, dropout: float,
        train: bool, bidirectional: bool, batch_first: bool,
    ) -> list[Value]:  # fmt: skip
        if not isinstance(e.node.args[3], bool):
            raise e.fail("a packed sequence")
        directions = 2 if bidirectional else 1
        sets = _weight_sets(e, layers * directions, has_biases)
        initial = states if isinstance(states, (list, tuple)) else [states]
        y = e.op("Transpose", x, perm=[1, 0, 2]) if batch_first else x
        lasts: list[list[Value]] = []
        for layer in range(layers):
            first = layer * directions
            chosen = sets[first : first + directions]
            begin = [
                e.op("Slice", s, e.constant([first]), e.constant([first + directions]), e.constant([0]))
                for s in initial
            ]
            y, last = _layer(e, kind, activation, y, chosen, begin)
            lasts.append(last)
        final = [state[0] if layers == 1 else e.op("Concat", *state, axis=0) for state in zip(*lasts, strict=True)]
        return [e.op("Transpose", y, perm=[1, 0, 2]) if batch_first else y, *final]

    return rule


def _weight_sets(e: Emitter, count: int, has_biases: bool) -> list[list[Tensor]]:
    """[weight_ih, weight_hh, bias_ih, bias_hh] for each layer and direction."""
    nodes = next(arg for arg in e.node.args[2:] if isinstance(arg, (list, tuple)))
    tensors = [e.program.tensor(node) for node in nodes]
    each = 4 if has_biases else 2
    if any(tensor is None for tensor in tensors):
        raise e.fail("recurrent weights that are computed")
    if len(tensors) != count * each:
        raise e.fail("a recurrent layer with projections")
    return [[t for t in tensors[i * each : (i + 1) * each] if t is not None] for i in range(count)]


def _layer(
    e: Emitter, kind: str, activation: str, x: Value, sets: Sequence[Sequence[Tensor]], begin: Sequence[Value]
) -> tuple[Value, list[Value]]:
    hidden = int(sets[0][1].shape[1])
    order = _GATES[kind]
    w, r, *biases = (torch.stack([_gates(given[part], order) for given in sets]) for part in range(len(sets[0])))
    bias = e.tensor(torch.cat(biases, dim=1), f"{e.node.name}.bias") if biases else None
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if len(sets) == 2 else "forward"}
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    if activation:
        attributes["activations"] = [activation] * len(sets)
    outputs = 3 if kind == "LSTM" else 2
    y, *last = e.multi(
        kind,
        outputs,
        x,
        e.tensor(w, f"{e.node.name}.weight"),
        e.tensor(r, f"{e.node.name}.recurrence"),
        bias,
        None,
        *begin,
        **attributes,
    )
    # [time, direction, batch, hidden] -> [time, batch, direction * hidden]
    if len(sets) == 1:
        return e.op("Squeeze", y, e.constant([1])), [*last]
    return e.op("Reshape", e.op("Transpose", y, perm=[0, 2, 1, 3]), e.constant([0, 0, 2 * hidden])), [*last]


def _gates(tensor: Tensor, order: Sequence[int]) -> Tensor:
    parts = tensor.detach().chunk(len(order))
    return torch.cat([parts[place] for place in order])


RULES: dict[Operator, Rule] = {
    aten.lstm.input: recurrent("LSTM"), aten.gru.input: recurrent("GRU"),
    aten.rnn_tanh.input: recurrent("RNN", "Tanh"), aten.rnn_relu.input: recurrent("RNN", "Relu"),
}  # fmt: skip
