"""Converters of torch operators to MIL that coremltools lacks or has wrong; the rules stand in converters.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from planish.backends.to_coreml.recurrent_converters import RECURRENT


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


CONVERTERS: dict[str, Callable[[Any, Any], None]] = {
    "alias": clone, "clone": clone, "gelu": gelu, "reciprocal": reciprocal, "where": where, "where.self": where,
    "where.scalarself": where, "where.scalarother": where, "prod": prod, "prod.dim_int": prod,
    "scalar_tensor": scalar_tensor,
    "div": div, "div.scalar_mode": div, "floor_divide": div,
    "upsample_bilinear2d": upsample_bilinear, "upsample_bilinear2d.vec": upsample_bilinear,
    **RECURRENT,
}  # fmt: skip
