"""Converters of recurrent layers, of which coremltools knows those of torch.jit only.

https://github.com/apple/coremltools/issues/1124

An LSTM is MIL's own layer. A GRU is written step by step, up to a length: Core ML's own was found to be right on the
CPU only, and not always there (https://github.com/webmachinelearning/webnn/issues/689).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNROLLED = 256
"""Steps of a GRU, over all layers and directions: eleven operations each."""
Weights = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def lstm(context: Any, node: Any) -> None:
    """lstm.input(x, (h, c), weights, has_biases, layers, dropout, train, bidirectional, batch_first)"""
    from coremltools.converters.mil.mil import Builder as mb

    x, states, layers = _recurrent(context, node)
    hidden, cells = [], []
    for number, directions in enumerate(layers):
        h, c = (_of_layer(state, number, len(directions)) for state in states)
        options = {}
        for suffix, (w_ih, w_hh, b_ih, b_hh) in zip(("", "_back"), directions, strict=False):
            options[f"weight_ih{suffix}"] = _reordered(w_ih, (0, 1, 3, 2))  # i f g o -> i f o g
            options[f"weight_hh{suffix}"] = _reordered(w_hh, (0, 1, 3, 2))
            options[f"bias{suffix}"] = _reordered(b_ih + b_hh, (0, 1, 3, 2))
        direction = "bidirectional" if len(directions) == 2 else "forward"
        x, h_last, c_last = mb.lstm(x=x, initial_h=h, initial_c=c, direction=direction, output_sequence=True, **options)
        hidden.append(_by_direction(h_last, len(directions)))
        cells.append(_by_direction(c_last, len(directions)))
    _give(context, node, x, hidden, cells)


def gru(context: Any, node: Any) -> None:
    """gru.input(x, h, weights, has_biases, layers, dropout, train, bidirectional, batch_first)"""
    from coremltools.converters.mil.mil import Builder as mb

    x, (state,), layers = _recurrent(context, node)
    direction = _unrolled if is_unrolled(x.shape[0], sum(map(len, layers))) else _as_one
    hidden = []
    for number, directions in enumerate(layers):
        parts, ends = [], []
        for side, weights in enumerate(directions):
            at = number * len(directions) + side
            start = mb.slice_by_size(x=state, begin=[at, 0, 0], size=[1, -1, -1])
            part, end = direction(x, start, weights, bool(side))
            parts.append(part)
            ends.append(end)
        x = mb.concat(values=parts, axis=2) if len(parts) == 2 else parts[0]
        hidden += ends
    _give(context, node, x, hidden)


def is_unrolled(steps: Any, directions: int) -> bool:
    """Whether a GRU of so many steps, and so many directions of all layers, is written in single operations."""
    return isinstance(steps, int | np.integer) and int(steps) * directions <= UNROLLED


def _as_one(x: Any, start: Any, weights: Weights, back: bool) -> tuple[Any, Any]:
    """MIL's own layer: the sequence [steps, batch, hidden], and its last state [1, batch, hidden]."""
    from coremltools.converters.mil.mil import Builder as mb

    w_ih, w_hh, b_ih, b_hh = (_reordered(each, (0, 2, 1)) for each in weights)  # r z n -> r n z
    sequence, end = mb.gru(
        x=x, initial_h=mb.squeeze(x=start, axes=[0]), weight_ih=w_ih, weight_hh=w_hh, input_bias=b_ih, bias=b_hh,
        direction="reverse" if back else "forward", output_sequence=True, reset_after=True,
    )  # fmt: skip
    return sequence, mb.expand_dims(x=end, axes=[0])


def _unrolled(x: Any, state: Any, weights: Weights, back: bool) -> tuple[Any, Any]:
    """As ``_as_one``, by https://pytorch.org/docs/stable/generated/torch.nn.GRU.html, eleven operations a step."""
    from coremltools.converters.mil.mil import Builder as mb

    w_ih, w_hh, b_ih, b_hh = weights
    by_state, shift = mb.const(val=w_hh), mb.const(val=b_hh)
    sizes = [2 * w_hh.shape[1], w_hh.shape[1]]
    count = int(x.shape[0])
    parts = mb.split(x=mb.linear(x=x, weight=w_ih, bias=b_ih), split_sizes=sizes, axis=2)
    gates, news = (mb.split(x=part, num_splits=count, axis=0) if count > 1 else [part] for part in parts)
    states = []
    for step in reversed(range(count)) if back else range(count):
        own_gates, own_new = mb.split(x=mb.linear(x=state, weight=by_state, bias=shift), split_sizes=sizes, axis=2)
        both = mb.sigmoid(x=mb.add(x=gates[step], y=own_gates))
        reset, kept = mb.split(x=both, num_splits=2, axis=2)
        new = mb.tanh(x=mb.add(x=news[step], y=mb.mul(x=reset, y=own_new)))
        state = mb.add(x=new, y=mb.mul(x=kept, y=mb.sub(x=state, y=new)))
        states.append(state)
    ordered = states[::-1] if back else states
    return (mb.concat(values=ordered, axis=0) if count > 1 else state), state


def _recurrent(context: Any, node: Any) -> tuple[Any, list[Any], list[list[Weights]]]:
    """The sequence [steps, batch, inputs], the initial states, and for each layer and direction its weights."""
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Builder as mb

    x, states, weights, biased, count, _, _, both, first = _get_inputs(context, node, expected=9)
    states = [*states] if isinstance(states, (list, tuple)) else [states]
    if bool(first.val):
        x = mb.transpose(x=x, perm=[1, 0, 2])
    sides = 2 if bool(both.val) else 1
    each = 4 if bool(biased.val) else 2
    values = [weight.val for weight in weights]
    if any(value is None for value in values):
        raise ValueError("weights that are computed")
    if len(values) != each * sides * int(count.val):
        raise ValueError("projected states")
    groups = [values[at : at + each] for at in range(0, len(values), each)]
    filled = [_with_biases(group) for group in groups]
    return x, states, [filled[at : at + sides] for at in range(0, len(filled), sides)]


def _with_biases(group: list[NDArray[Any]]) -> Weights:
    zero = np.zeros(group[0].shape[0], group[0].dtype)
    w_ih, w_hh, b_ih, b_hh = group if len(group) == 4 else (*group, zero, zero)
    return w_ih, w_hh, b_ih, b_hh


def _reordered(gates: NDArray[Any], order: tuple[int, ...]) -> NDArray[Any]:
    parts = np.split(gates, len(order))
    return np.concatenate([parts[place] for place in order])


def _of_layer(state: Any, number: int, sides: int) -> Any:
    """[layers * sides, batch, hidden] -> [batch, sides * hidden] of one layer."""
    from coremltools.converters.mil.mil import Builder as mb

    rows = [mb.gather(x=state, indices=np.int32(number * sides + side), axis=0) for side in range(sides)]
    return rows[0] if sides == 1 else mb.concat(values=rows, axis=1)


def _by_direction(last: Any, sides: int) -> Any:
    """[batch, sides * hidden] -> [sides, batch, hidden]"""
    from coremltools.converters.mil.mil import Builder as mb

    return (
        mb.stack(values=mb.split(x=last, num_splits=2, axis=1), axis=0)
        if sides == 2
        else mb.expand_dims(x=last, axes=[0])
    )


def _give(context: Any, node: Any, sequence: Any, *states: list[Any]) -> None:
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Builder as mb

    if bool(_get_inputs(context, node)[-1].val):
        sequence = mb.transpose(x=sequence, perm=[1, 0, 2])
    ends = [layers[0] if len(layers) == 1 else mb.concat(values=layers, axis=0) for layers in states]
    context.add((sequence, *ends), node.name)


RECURRENT: dict[str, Callable[[Any, Any], None]] = {"lstm.input": lstm, "gru.input": gru}
