"""Graph rewrites that coremltools needs: the same function, in forms that it converts without an error.

Rules:

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
7. Windows are cut with at most five dimensions: Core ML has tensors of no more.
   https://github.com/apple/coremltools/blob/main/coremltools/converters/mil/mil/program.py
   Where two unfolds cut them, the rows of windows are one dimension with the channels.
8. Flattening is a reshape, pooling to one place a mean, ``to`` a cast or nothing, ``new_ones`` the same as ``full``:
   what has a converter needs no second trace.
9. ``arange`` in real numbers counts in whole ones, then casts: coremltools drops its dtype. Reported nowhere that
   we found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.program import Program, rebuild
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
                replacement = rule(_Here(program.graph, node), node)
            if replacement is not None:
                replacement.meta["val"] = node.meta["val"]
                node.replace_all_uses_with(replacement)
    program.graph.eliminate_dead_code()
    program.graph.lint()
    module = rebuild(program.graph_module, program.graph)
    return Program(module, program.example_inputs, dict(program.dynamic_axes))


class _Here:
    """Calls in front of one node, that come from the same module as it."""

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self.graph, self.stack = graph, node.meta.get("nn_module_stack")

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        made = self.graph.call_function(target, args, kwargs)
        if self.stack is not None:
            made.meta["nn_module_stack"] = self.stack
        return made


Rule = Callable[[_Here, fx.Node], fx.Node | None]


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _without_alpha(call: _Here, node: fx.Node) -> fx.Node | None:
    """Rule 1."""
    alpha = _argument(node, 2, "alpha", 1)
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


def _product(call: _Here, value: Any, factor: Any) -> Any:
    return call(aten.mul.Tensor, value, factor) if isinstance(value, fx.Node) else value * factor


def _plain_attention(call: _Here, node: fx.Node) -> fx.Node | None:
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


def _bags(call: _Here, node: fx.Node) -> fx.Node | None:
    """Rule 4."""
    weight, indices, offsets = node.args[:3]
    mode = _argument(node, 4, "mode", 0)
    weights, last = _argument(node, 6, "per_sample_weights", None), _argument(node, 7, "include_last_offset", False)
    padding = _argument(node, 8, "padding_idx", None)
    length = _bag_length(offsets)
    if length is None or last or (padding is not None and padding >= 0):
        return None
    rows = call(aten.embedding.default, weight, indices)
    if weights is not None:
        rows = call(aten.mul.Tensor, rows, call(aten.unsqueeze.default, weights, 1))
    bags = call(aten.reshape.default, rows, [-1, length, int(_fake(weight).shape[1])])
    pooled = call((aten.sum.dim_IntList, aten.mean.dim, aten.amax.default)[mode], bags, [1])
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


def _with_stride(call: _Here, node: fx.Node) -> fx.Node | None:
    """Rule 6."""
    return call(node.target, *node.args, node.args[1]) if len(node.args) == 2 and not node.kwargs else None


def _on_fewer_dimensions(call: _Here, node: fx.Node) -> fx.Node | None:
    """Rule 7: dimensions that a permutation leaves side by side are one, between two reshapes."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.target not in _RESHAPES or _fake(source).ndim <= MAX_RANK:
        return None
    if len(source.users) > 1 or not all(_ends_in_reshape(user) for user in node.users):
        return None
    rank = _fake(source).ndim
    groups: list[list[int]] = []
    for dim in _order(node, rank):
        if groups and dim == groups[-1][-1] + 1:
            groups[-1].append(dim)
        else:
            groups.append([dim])
    ordered = sorted(groups)
    sizes = [[_fake(source).shape[dim] for dim in group] for group in ordered]
    merged = [math.prod(group) if all(isinstance(size, int) for size in group) else -1 for group in sizes]
    if len(merged) > MAX_RANK:
        return _in_swaps(call, source, _order(node, rank))
    if merged.count(-1) > 1:
        return None
    flat = call(aten.reshape.default, source.args[0], merged)
    return call(aten.permute.default, flat, [ordered.index(group) for group in groups])


def _in_swaps(call: _Here, source: fx.Node, order: list[int]) -> fx.Node | None:
    """Rule 7: a permutation as swaps of two neighbouring blocks of dimensions, each on four dimensions."""
    sizes, now = _fake(source).shape, [*range(len(order))]
    value: Any = source.args[0]
    for place, wanted in enumerate(order):
        at = now.index(wanted)
        if at == place:
            continue
        blocks = [now[:place], now[place:at], [wanted], now[at + 1 :]]
        listed = [[sizes[dim] for dim in block] for block in blocks]
        shape = [math.prod(block) if all(isinstance(size, int) for size in block) else -1 for block in listed]
        if shape.count(-1) > 1:
            return None
        value = call(aten.permute.default, call(aten.reshape.default, value, shape), [0, 2, 1, 3])
        now = [*now[:place], wanted, *now[place:at], *now[at + 1 :]]
    return value if isinstance(value, fx.Node) else None


def _windows(call: _Here, node: fx.Node) -> fx.Node | None:
    """Rule 7: the second of two unfolds, of the columns of [batch, channels, rows of windows, columns, row]."""
    source, dim, size, step = node.args
    if not isinstance(source, fx.Node) or source.target is not aten.unfold.default or _fake(source).ndim != MAX_RANK:
        return None
    if dim not in (3, -2) or not all(_ends_in_reshape(user) for user in node.users):
        return None
    batch, channels, rows, columns, height = _fake(source).shape
    batch = -1 if not isinstance(batch, int) else batch
    turned = call(aten.permute.default, source, [0, 1, 2, 4, 3])
    merged = call(aten.reshape.default, turned, [batch, channels * rows, height, columns])
    cut = call(aten.unfold.default, merged, 3, size, step)
    return call(aten.permute.default, cut, [0, 1, 3, 2, 4])


def _order(node: fx.Node, rank: int) -> list[int]:
    order: Any = node.args[1]
    if node.target is aten.permute.default:
        return [dim % rank for dim in order]
    swapped = [*range(rank)]
    a, b = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
    swapped[a], swapped[b] = b, a
    return swapped


def _ends_in_reshape(node: fx.Node) -> bool:
    if node.target in (aten.clone.default, aten.contiguous.default):
        return all(_ends_in_reshape(user) for user in node.users)
    return node.target in _RESHAPES


def _flattened(call: _Here, node: fx.Node) -> fx.Node | None:
    """Rule 8."""
    source = _fake(node.args[0])
    shape = [size if isinstance(size, int) else -1 for size in _fake(node).shape]
    return call(aten.reshape.default, node.args[0], shape) if source.ndim and shape.count(-1) <= 1 else None


def _mean_of_all(call: _Here, node: fx.Node) -> fx.Node | None:
    """Rule 8."""
    sizes: Any = node.args[1]
    dims = [*range(-len(sizes), 0)]
    return call(aten.mean.dim, node.args[0], dims, True) if all(size == 1 for size in sizes) else None


def _cast(call: _Here, node: fx.Node) -> fx.Node | None:
    """Rule 8: where a tensor lies, a package does not know."""
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    dtype = _fake(node).dtype
    if dtype is _fake(source).dtype:
        return source
    return call(aten._to_copy.default, source, dtype=dtype)


def _ones(call: _Here, node: fx.Node) -> fx.Node:
    """Rule 8."""
    return call(aten.full.default, node.args[1], 1, dtype=_fake(node).dtype)


def _counted(call: _Here, node: fx.Node) -> fx.Node | None:
    """Rule 9."""
    dtype = _fake(node).dtype
    if not dtype.is_floating_point or any(isinstance(arg, float) for arg in node.args):
        return None
    return call(aten._to_copy.default, call(node.target, *node.args, dtype=torch.int64), dtype=dtype)


def _renamed(target: Any) -> Rule:
    """Rule 5."""
    return lambda call, node: call(target, *node.args)


MAX_RANK = 5
_RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints)
RULES: dict[Any, Rule] = {
    aten.add.Tensor: _without_alpha, aten.add.Scalar: _without_alpha, aten.sub.Tensor: _without_alpha,
    aten.sub.Scalar: _without_alpha, aten.rsub.Tensor: _without_alpha, aten.rsub.Scalar: _without_alpha,
    aten.scaled_dot_product_attention.default: _plain_attention,
    aten.max_pool1d.default: _with_stride, aten.max_pool2d.default: _with_stride, aten.max_pool3d.default: _with_stride,
    aten.avg_pool1d.default: _with_stride, aten.avg_pool2d.default: _with_stride, aten.avg_pool3d.default: _with_stride,
    aten.permute.default: _on_fewer_dimensions, aten.transpose.int: _on_fewer_dimensions,
    aten.unfold.default: _windows,
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
