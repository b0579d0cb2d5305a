"""Converters of torch operators to MIL that coremltools lacks or has wrong; the rules stand in converters.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def gelu(context: Any, node: Any) -> None:
    from coremltools.converters.mil.mil import Builder as mb

    # As it stands in the node: looked up as coremltools does, "tanh" would be the value of a node of that name.
    (given,) = node.kwinputs.get("approximate") or node.inputs[1:2] or ("none",)
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[given]
    context.add(mb.gelu(x=context[node.inputs[0]], mode=mode, name=node.name))


def clone(context: Any, node: Any) -> None:
    """A value of its own: coremltools gives an input that is an output a second name, and fails on it."""
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Builder as mb

    x, *_ = _get_inputs(context, node)
    context.add(mb.identity(x=x, name=node.name))


def upsample_bilinear(context: Any, node: Any) -> None:
    """upsample_bilinear2d(x, size, align_corners, scales …), to the very size: the sampling is that of PyTorch."""
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Builder as mb

    x, size, aligned, *scales = _get_inputs(context, node, min_expected=3)
    given = [float(getattr(each, "val", each)) for each in _flattened(scales) if each is not None]
    own = [*x.shape[-2:]]
    target = (
        [int(side) for side in size.val]
        if size is not None
        else [int(side * scale) for side, scale in zip(own, given, strict=True)]
    )
    if not bool(aligned.val) and given and [side * scale for side, scale in zip(own, given, strict=True)] != target:
        raise ValueError("a scale that is no ratio of sizes")
    mode = "STRICT_ALIGN_CORNERS" if bool(aligned.val) else "UNALIGN_CORNERS"
    context.add(
        mb.resize_bilinear(
            x=x, target_size_height=target[0], target_size_width=target[1], sampling_mode=mode, name=node.name
        )
    )


def _flattened(scales: list[Any]) -> list[Any]:
    values = [getattr(each, "val", each) for each in scales]
    return [item for value in values for item in (value if isinstance(value, (list, tuple, np.ndarray)) else [value])]


def reciprocal(context: Any, node: Any) -> None:
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Builder as mb

    (x,) = _get_inputs(context, node, expected=1)
    context.add(mb.real_div(x=1.0, y=x, name=node.name))


def where(context: Any, node: Any) -> None:
    """Operands as large as the result: MIL's select takes its declared shape from these, not from the condition."""
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, promote_input_dtypes
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    cond, a, b = _get_inputs(context, node, expected=3)
    a, b = promote_input_dtypes([a, b])
    kind = types.builtin_to_string(b.dtype)
    if not types.is_bool(cond.dtype):
        cond = mb.cast(x=cond, dtype="bool")
    if [*cond.shape] != [*b.shape]:
        real = "int32" if kind == "bool" else kind
        b = mb.add(x=mb.cast(x=b, dtype=real), y=mb.mul(x=mb.cast(x=cond, dtype=real), y=_zero(real)))
        b = mb.cast(x=b, dtype="bool") if kind == "bool" else b
    context.add(mb.select(cond=cond, a=a, b=b, name=node.name))


def _zero(kind: str) -> Any:
    return {"int32": np.int32, "fp16": np.float16}.get(kind, np.float32)(0)


def div(context: Any, node: Any) -> None:
    """Both of div and of floor_divide; whole numbers stay whole."""
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs, promote_input_dtypes
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    x, y, *rest = _get_inputs(context, node)
    mode = _get_kwinputs(context, node, "rounding_mode", default=[rest[0] if rest else None])[0]
    mode = "floor" if node.kind.startswith("floor_divide") else getattr(mode, "val", mode)
    x, y = promote_input_dtypes([x, y])
    if types.is_int(x.dtype) and mode is None:
        x, y = (mb.cast(x=each, dtype="fp32") for each in (x, y))
    if mode is None:
        result = mb.real_div(x=x, y=y, name=node.name)
    elif mode == "floor":
        result = mb.floor_div(x=x, y=y, name=node.name)
    else:
        size = mb.floor_div(x=mb.abs(x=x), y=mb.abs(x=y))
        result = mb.mul(x=size, y=mb.mul(x=mb.sign(x=x), y=mb.sign(x=y)), name=node.name)
    context.add(result)


def prod(context: Any, node: Any) -> None:
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.mil import Builder as mb

    x, *rest = _get_inputs(context, node)
    axes = [int(rest[0].val)] if rest else None
    keep = bool(rest[1].val) if len(rest) > 1 else False
    context.add(mb.reduce_prod(x=x, axes=axes, keep_dims=keep, name=node.name))


def scalar_tensor(context: Any, node: Any) -> None:
    """A number as a tensor: one that is known, or a size of a dynamic axis."""
    from coremltools.converters.mil.frontend.torch.ops import NUM_TO_DTYPE_STRING, _get_inputs, _get_kwinputs
    from coremltools.converters.mil.mil import Builder as mb

    x, *_ = _get_inputs(context, node)
    dtype = _get_kwinputs(context, node, "dtype", default=[None])[0]
    kind = "fp32" if dtype is None else NUM_TO_DTYPE_STRING[dtype.val]
    context.add(mb.cast(x=x, dtype=kind, name=node.name))


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
    hidden = []
    for number, directions in enumerate(layers):
        start = _of_layer(state, number, len(directions))
        parts, ends = [], []
        size = directions[0][1].shape[1]
        for side, (w_ih, w_hh, b_ih, b_hh) in enumerate(directions):
            order = (0, 2, 1)  # r z n -> r n z
            h = mb.slice_by_index(
                x=start, begin=[0, side * size], end=[0, (side + 1) * size], begin_mask=[True, False],
                end_mask=[True, False],
            )  # fmt: skip
            part, end = mb.gru(
                x=x, initial_h=h, weight_ih=_reordered(w_ih, order), weight_hh=_reordered(w_hh, order),
                input_bias=_reordered(b_ih, order), bias=_reordered(b_hh, order),
                direction="reverse" if side else "forward", output_sequence=True, reset_after=True,
            )  # fmt: skip
            parts.append(part)
            ends.append(end)
        x = mb.concat(values=parts, axis=2) if len(parts) == 2 else parts[0]
        hidden.append(mb.stack(values=ends, axis=0))
    _give(context, node, x, hidden)


Weights = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


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


CONVERTERS: dict[str, Callable[[Any, Any], None]] = {
    "alias": clone, "clone": clone, "gelu": gelu, "reciprocal": reciprocal, "where": where, "where.self": where,
    "where.scalarself": where, "where.scalarother": where, "prod": prod, "prod.dim_int": prod,
    "scalar_tensor": scalar_tensor,
    "div": div, "div.scalar_mode": div, "floor_divide": div,
    "upsample_bilinear2d": upsample_bilinear, "upsample_bilinear2d.vec": upsample_bilinear,
    "lstm.input": lstm, "gru.input": gru,
}  # fmt: skip
