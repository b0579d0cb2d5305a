"""Graph rewrites that coremltools needs: the same function, in forms that it converts without an error.

Rules; those without a link we found by converting with coremltools 9.0:

1. ``add``, ``sub`` and ``rsub`` with ``alpha`` become a product and a sum: coremltools 9 drops alpha.
   https://github.com/apple/coremltools/issues/2573
2. Attention of grouped queries gets as many key and value heads as query heads: coremltools 9 drops ``enable_gqa``.
   https://github.com/apple/coremltools/pull/2855
3. Attention with a ``scale`` of its own gets scaled queries: MIL's attention has no scale.
   https://github.com/apple/coremltools/pull/2864
   https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html (iOS 18, transformers)
4. Bags of embeddings of one size are an embedding and a reduction.
5. ``__and__`` and its like are bitwise operators under another name, which coremltools does not know.
6. Pools without a stride get that of their kernel: some converters demand it.
7. Flattening is a reshape, pooling to one place a mean, ``to`` a cast or nothing, ``new_ones`` the same as ``full``:
   what has a converter needs no second trace.
8. ``arange`` in real numbers counts in whole ones, then casts: coremltools drops its dtype. Reported nowhere that
   we found.
9. Resizing with a filter against aliasing is a product with one matrix for each side; the operator itself tells them,
   applied to a unit image. coremltools has no converter for it.
10. ``fold`` is a transposed convolution with kernels that are 1 in one place each: coremltools does not add up what
    falls into one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from planish.backends.to_coreml.calls import Calls
from planish.backends.to_coreml.high_ranks import on_few_dimensions
from planish.compiler.program import Program, arguments
from planish.compiler.resizing import resize_matrices
from planish.compiler.shapes import ensure_shapes

aten = torch.ops.aten


def rewrite(program: Program) -> Program:
    """``program`` after all rules; the original stays as it was."""
    program = program.fork()
    ensure_shapes(program)
    for node in [*program.calls()]:
        rule = RULES.get(node.target)
        if rule is not None:
            with program.graph.inserting_before(node):
                replacement = rule(Calls(program, node), node)
            if replacement is not None:
                replacement.meta["val"] = node.meta["val"]
                node.replace_all_uses_with(replacement)
    program.graph.eliminate_dead_code()
    on_few_dimensions(program)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    return program.with_graph(program.graph)


Rule = Callable[[Calls, fx.Node], fx.Node | None]


def _without_alpha(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rule 1."""
    alpha = arguments(node)["alpha"]
    if alpha == 1:
        return None
    x, y = node.args[:2]
    if node.target in (aten.rsub.Tensor, aten.rsub.Scalar):
        return (
            call(aten.sub.Tensor, y, _product(call, x, alpha))
            if isinstance(y, fx.Node)
            else call(aten.rsub.Scalar, _product(call, x, alpha), y)
        )
    return call(node.target, x, _product(call, y, alpha))


def _product(call: Calls, value: Any, factor: Any) -> Any:
    return call(aten.mul.Tensor, value, factor) if isinstance(value, fx.Node) else value * factor


def _plain_attention(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rules 2 and 3."""
    query, key, value = node.args[:3]
    scale, grouped = node.kwargs.get("scale"), node.kwargs.get("enable_gqa", False)
    if scale is None and not grouped:
        return None
    heads, own = _fake(query).shape[-3], _fake(key).shape[-3]
    if grouped and heads != own:
        key, value = (call(aten.repeat_interleave.self_int, each, int(heads // own), -3) for each in (key, value))
    if scale is not None:
        query = call(aten.mul.Tensor, query, float(scale) * float(_fake(query).shape[-1]) ** 0.5)  # type: ignore[arg-type]
    return call(node.target, query, key, value, *node.args[3:], **_others(node, "scale", "enable_gqa"))


def _others(node: fx.Node, *names: str) -> dict[str, Any]:
    return {name: value for name, value in node.kwargs.items() if name not in names}


def _fake(node: Any) -> Tensor:
    value = node.meta["val"]
    assert isinstance(value, Tensor), f"{node.name} is no tensor"
    return value


def _bags(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rule 4."""
    weight, indices, offsets = node.args[:3]
    given = arguments(node)
    weights, last, padding = given["per_sample_weights"], given["include_last_offset"], given["padding_idx"]
    length = _bag_length(offsets)
    if length is None or last or (padding is not None and padding >= 0):
        return None
    rows = call(aten.embedding.default, weight, indices)
    if weights is not None:
        rows = call(aten.mul.Tensor, rows, call(aten.unsqueeze.default, weights, 1))
    bags = call(aten.reshape.default, rows, [-1, length, int(_fake(weight).shape[1])])
    pooled = call((aten.sum.dim_IntList, aten.mean.dim, aten.amax.default)[given["mode"]], bags, [1])
    for user in [*node.users]:
        if user.args[1] == 0:
            user.replace_all_uses_with(pooled)
    return None


def _bag_length(offsets: Any) -> int | None:
    """The size of all bags, where the offsets are ``arange(0, all, size)``: what a 2-d input gives."""
    if not isinstance(offsets, fx.Node) or offsets.target is not aten.arange.start_step:
        return None
    step = offsets.args[2] if len(offsets.args) > 2 else 1
    return step if offsets.args[0] == 0 and isinstance(step, int) else None


def _with_stride(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rule 6."""
    return call(node.target, *node.args, node.args[1]) if len(node.args) == 2 and not node.kwargs else None


def _flattened(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rule 7."""
    source = _fake(node.args[0])
    shape = [size if isinstance(size, int) else -1 for size in _fake(node).shape]
    return call(aten.reshape.default, node.args[0], shape) if source.ndim and shape.count(-1) <= 1 else None


def _mean_of_all(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rule 7."""
    sizes: Any = node.args[1]
    dims = [*range(-len(sizes), 0)]
    return call(aten.mean.dim, node.args[0], dims, True) if all(size == 1 for size in sizes) else None


def _cast(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rule 7: where a tensor lies, a package does not know."""
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    dtype = _fake(node).dtype
    if dtype is _fake(source).dtype:
        return source
    return call(aten._to_copy.default, source, dtype=dtype)


def _ones(call: Calls, node: fx.Node) -> fx.Node:
    """Rule 7."""
    return call(aten.full.default, node.args[1], 1, dtype=_fake(node).dtype)


def _counted(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rule 8."""
    dtype = _fake(node).dtype
    if not dtype.is_floating_point or any(isinstance(arg, float) for arg in node.args):
        return None
    return call(aten._to_copy.default, call(node.target, *node.args, dtype=torch.int64), dtype=dtype)


def _by_matrices(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rule 9."""
    source, *args = arguments(node).values()
    old, new, dtype = _fake(source).shape[-2:], _fake(node).shape[-2:], _fake(source).dtype
    if not all(isinstance(side, int) for side in (*old, *new)) or new[1] == 1:
        return None  # PyTorch 2.13 resizes the rows of what gets one column to something else: no product gives that
    rows, columns = resize_matrices(node.target, args, old, new, dtype)
    narrowed = call(aten.matmul.default, source, call.constant(columns.T.contiguous()))
    return call(aten.matmul.default, call.constant(rows), narrowed)


def _fold(call: Calls, node: fx.Node) -> fx.Node | None:
    """Rule 10. Without padding, which is cut off afterwards; what no window reaches is 0."""
    args: Any = node.args
    source, size, kernel, dilation, padding, stride = args
    sides = [*zip(size, kernel, dilation, padding, stride, strict=True)]
    counts = [(whole + 2 * pad - gap * (side - 1) - 1) // step + 1 for whole, side, gap, pad, step in sides]
    if not all(isinstance(each, int) for each in counts):
        return None
    places = math.prod(kernel)
    ones = torch.eye(places, dtype=_fake(source).dtype).reshape(places, 1, *kernel)
    windows = call(aten.reshape.default, source, [-1, places, *counts])
    image = call(aten.conv_transpose2d.input, windows, call.constant(ones), None, stride, [0, 0], [0, 0], 1, dilation)
    for dim, (count, (whole, side, gap, pad, step)) in enumerate(zip(counts, sides, strict=True), start=2):
        missing = pad + whole - ((count - 1) * step + gap * (side - 1) + 1)
        if missing > 0:
            amounts = [0, 0, 0, missing] if dim == 2 else [0, missing, 0, 0]
            image = call(aten.constant_pad_nd.default, image, amounts)
        image = call(aten.slice.Tensor, image, dim, pad, pad + whole)
    shape = [each if isinstance(each, int) else -1 for each in _fake(node).shape]
    return call(aten.reshape.default, image, shape)


def _renamed(target: Any) -> Rule:
    """Rule 5."""
    return lambda call, node: call(target, *node.args)


RULES: dict[Any, Rule] = {
    aten.add.Tensor: _without_alpha, aten.add.Scalar: _without_alpha, aten.sub.Tensor: _without_alpha,
    aten.sub.Scalar: _without_alpha, aten.rsub.Tensor: _without_alpha, aten.rsub.Scalar: _without_alpha,
    aten.scaled_dot_product_attention.default: _plain_attention,
    aten.max_pool1d.default: _with_stride, aten.max_pool2d.default: _with_stride, aten.max_pool3d.default: _with_stride,
    aten.avg_pool1d.default: _with_stride, aten.avg_pool2d.default: _with_stride, aten.avg_pool3d.default: _with_stride,
    aten._upsample_bilinear2d_aa.vec: _by_matrices, aten._upsample_bicubic2d_aa.vec: _by_matrices,
    aten.col2im.default: _fold,
    aten.arange.default: _counted, aten.arange.start: _counted, aten.arange.start_step: _counted,
    aten.flatten.using_ints: _flattened, aten.new_ones.default: _ones,
    aten.to.dtype: _cast, aten.to.device: _cast, aten.to.dtype_layout: _cast, aten.to.other: _cast,
    aten.adaptive_avg_pool1d.default: _mean_of_all, aten.adaptive_avg_pool2d.default: _mean_of_all,
    aten.adaptive_avg_pool3d.default: _mean_of_all,
    aten.embedding_bag.padding_idx: _bags, aten._embedding_bag.default: _bags,
    aten.__and__.Tensor: _renamed(aten.bitwise_and.Tensor), aten.__or__.Tensor: _renamed(aten.bitwise_or.Tensor),
    aten.__xor__.Tensor: _renamed(aten.bitwise_xor.Tensor), aten.__and__.Scalar: _renamed(aten.bitwise_and.Scalar),
    aten.__or__.Scalar: _renamed(aten.bitwise_or.Scalar), aten.__xor__.Scalar: _renamed(aten.bitwise_xor.Scalar),
}  # fmt: skip
