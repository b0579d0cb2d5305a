"""Recurrent layers, one step after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.backends.to_coreml.mil_values import Function, Unevaluated, number

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "linear": lambda x: x,
}
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


def _activation(kind: str, name: str) -> Callable[[Tensor], Tensor]:
    if name not in _ACTIVATIONS:
        raise Unevaluated(kind, f"activation {name}")
    return _ACTIVATIONS[name]


def _scan(x: Tensor, state: State, step: Step, reverse: bool) -> tuple[Tensor, State]:
    """Every hidden state in the order of ``x`` [steps, batch, inputs], and the last state."""
    hidden = []
    for row in reversed(x.unbind()) if reverse else x.unbind():
        state = step(row, state)
        hidden.append(state[0])
    return torch.stack(hidden[::-1] if reverse else hidden), state


def _results(sequence: Tensor, state: State, output_sequence: Tensor) -> tuple[Tensor, ...]:
    return (sequence if bool(output_sequence) else state[0][None], *state)


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    direction: str,
    output_sequence: Tensor,
    activation: str,
    bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    curve = _activation("rnn", activation)

    def step(row: Tensor, state: State) -> State:
        return (curve(F.linear(row, weight_ih, bias) + F.linear(state[0], weight_hh)),)

    return _results(*_scan(x, (initial_h,), step, direction == "reverse"), output_sequence)


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    direction: str,
    output_sequence: Tensor,
    recurrent_activation: str,
    activation: str,
    bias: Tensor | None = None,
    reset_after: Tensor | None = None,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gates in the order reset, new, update."""
    if reset_after is None or not bool(reset_after):
        raise Unevaluated("gru", "reset gate before the product: its formula and its text contradict each other")
    gate, curve = _activation("gru", recurrent_activation), _activation("gru", activation)

    def step(row: Tensor, state: State) -> State:
        reset, new, update = F.linear(row, weight_ih, input_bias).chunk(3, -1)
        own_reset, own_new, own_update = F.linear(state[0], weight_hh, bias).chunk(3, -1)
        kept = gate(update + own_update)
        fresh = curve(new + gate(reset + own_reset) * own_new)
        return ((1 - kept) * fresh + kept * state[0],)

    return _results(*_scan(x, (initial_h,), step, direction == "reverse"), output_sequence)


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    direction: str,
    output_sequence: Tensor,
    recurrent_activation: str,
    cell_activation: str,
    activation: str,
    bias: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    clip: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gates in the order input, forget, output, cell. Peepholes have no torch form: a TypeError says unknown."""
    gate, curve, last = (_activation("lstm", name) for name in (recurrent_activation, cell_activation, activation))

    def stepping(by_input: Tensor, by_state: Tensor, shift: Tensor | None) -> Step:
        def step(row: Tensor, state: State) -> State:
            sums = F.linear(row, by_input, shift) + F.linear(state[0], by_state)
            write, keep, show, value = sums.chunk(4, -1)
            value = value if clip is None else value.clamp(-number(clip), number(clip))
            cell = gate(keep) * state[1] + gate(write) * curve(value)
            return gate(show) * last(cell), cell

        return step

    ahead = stepping(weight_ih, weight_hh, bias)
    if direction != "bidirectional":
        return _results(*_scan(x, (initial_h, initial_c), ahead, direction == "reverse"), output_sequence)
    assert weight_ih_back is not None and weight_hh_back is not None, "MIL demands them for both directions"
    back = stepping(weight_ih_back, weight_hh_back, bias_back)
    (h, h_back), (c, c_back) = initial_h.chunk(2, -1), initial_c.chunk(2, -1)
    forward, end = _scan(x, (h, c), ahead, reverse=False)
    backward, end_back = _scan(x, (h_back, c_back), back, reverse=True)
    state = tuple(torch.cat(pair, -1) for pair in zip(end, end_back, strict=True))
    return _results(torch.cat([forward, backward], -1), state, output_sequence)


OPERATIONS: dict[str, Function] = {"rnn": rnn, "gru": gru, "lstm": lstm}
