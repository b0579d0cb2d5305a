"""Coupling rules of the ops that put values together and take them apart: concatenation, slices, padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from planish.compiler.coupling.dims import Dim, concatenation, product
from planish.compiler.coupling.inference import Inference, Rule, Shape, Type, size_of
from planish.compiler.program import arguments

aten = torch.ops.aten


def cat(node: fx.Node, inference: Inference) -> Shape:
    given = arguments(node)
    shapes = [inference.shape(tensor) for tensor in given["tensors"]]
    shapes = [shape for shape in shapes if len(shape) != 1 or shape[0].size]  # torch.cat skips what is [0]
    axis = given["dim"] % len(shapes[0])
    for shape in shapes[1:]:
        inference.unify_shapes(shapes[0][:axis], shape[:axis])
        inference.unify_shapes(shapes[0][axis + 1 :], shape[axis + 1 :])
    together = concatenation(shape[axis] for shape in shapes)
    return (*shapes[0][:axis], together, *shapes[0][axis + 1 :])


def stack(node: fx.Node, inference: Inference) -> Shape:
    given = arguments(node)
    shape = inference.broadcast([inference.shape(tensor) for tensor in given["tensors"]])
    axis = given["dim"] % (len(shape) + 1)
    number = inference.frozen([len(given["tensors"])], "it numbers what is stacked", node)
    return (*shape[:axis], *number, *shape[axis:])


def split(node: fx.Node, inference: Inference) -> Type:
    """The parts one behind the other are the whole. ``normalize`` has written out their sizes."""
    given, x = arguments(node), inference.shape(node.args[0])
    axis = given["dim"] % len(x)
    sizes = given["split_sizes"]
    parts = [Dim(inference.size(size_of(size))) for size in sizes]
    inference.unify(x[axis], concatenation(parts))
    for index, part in enumerate(parts):
        inference.is_size(node, "split_sizes", part, index)
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


def split_whatever(node: fx.Node, inference: Inference) -> Type:
    """Into parts whose sizes ``normalize`` could not write out, because they are symbolic."""
    x = inference.shape(node.args[0])
    axis = arguments(node)["dim"] % len(x)
    inference.freeze([x[axis]], "it is split by its size", node)
    parts = [inference.frozen([inference.size(part.shape[axis])], "it is split by its size", node)[0]
             for part in node.meta["val"]]  # fmt: skip
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


def cut_out(node: fx.Node, inference: Inference) -> Shape:
    """The argument = before + result + behind. With a step, it is n x step where that covers it all."""
    given, x = arguments(node), inference.shape(node.args[0])
    axis = given["dim"] % len(x)
    before, middle, behind = _cut(node, inference, given, x[axis], inference.sizes(node)[axis])
    if before.size:
        inference.is_size(node, "start", before)
    if behind.size and "length" in given:
        inference.is_size(node, "length", middle)
    elif behind.size:
        inference.is_size(node, "end", concatenation([before, middle]))
    return (*x[:axis], middle, *x[axis + 1 :])


def _cut(node: fx.Node, inference: Inference, given: dict[str, Any], dim: Dim, size: int) -> tuple[Dim, Dim, Dim]:
    start, step = given["start"] or 0, given.get("step", 1)
    whole = Dim(0), dim, Dim(0)
    if step == 1 and size == dim.size:
        return whole
    if isinstance(start, int) and step == 1 and start + size <= dim.size and _is_plain(given):
        parts = Dim(start), Dim(size), Dim(dim.size - start - size)
        inference.unify(dim, concatenation(parts))
        return parts
    if isinstance(start, int) and step > 1 and dim.size == size * step and 0 <= start < step:
        strided, steps = Dim(size), inference.frozen([step], "it is a step", node)[0]
        inference.unify(dim, product([strided, steps]))
        return Dim(0), strided, Dim(0)
    inference.freeze([dim], "positions are cut out of it", node)
    return Dim(0), inference.frozen([size], "positions are cut out of it", node)[0], Dim(0)


def _is_plain(given: dict[str, Any]) -> bool:
    """Whether the bounds count from the front: ``normalize`` made those of fixed sizes so."""
    end = given.get("end", given.get("length"))
    return given["start"] is None or (given["start"] >= 0 and (end is None or (isinstance(end, int) and end >= 0)))


def select(node: fx.Node, inference: Inference) -> Shape:
    x = inference.shape(node.args[0])
    axis = arguments(node)["dim"] % len(x)
    inference.freeze([x[axis]], "positions are selected from it", node)
    return (*x[:axis], *x[axis + 1 :])


def unbind(node: fx.Node, inference: Inference) -> Type:
    return [select(node, inference) for _ in node.meta["val"]]


def item(node: fx.Node, inference: Inference) -> Type:
    """``operator.getitem``: one of several values."""
    source, index = node.args
    values = inference.types[source]  # type: ignore[index]
    assert isinstance(values, list) and isinstance(index, int)
    found: Type = values[index]
    return found


def write_slice(node: fx.Node, inference: Inference) -> Shape:
    """``slice_scatter``: the written values are a slice of the result."""
    given, x, written = arguments(node), inference.shape(node.args[0]), inference.shape(node.args[1])
    axis = given["dim"] % len(x)
    before, middle, behind = _cut(node, inference, given, x[axis], written[axis].size)
    inference.unify(written[axis], middle)
    if before.size:
        inference.is_size(node, "start", before)
    if behind.size:
        inference.is_size(node, "end", concatenation([before, middle]))
    inference.broadcast([(*x[:axis], *x[axis + 1 :]), (*written[:axis], *written[axis + 1 :])])
    return x


def write_position(node: fx.Node, inference: Inference) -> Shape:
    """``select_scatter``."""
    x, written = inference.shape(node.args[0]), inference.shape(node.args[1])
    inference.broadcast([select(node, inference), written])
    return x


def pad(node: fx.Node, inference: Inference) -> Shape:
    """Padding with a constant is a segment on either side, which can be cut as well; other modes look at neighbours."""
    given, shape = arguments(node), [*inference.shape(node.args[0])]
    amounts = [inference.size(size_of(amount)) for amount in given["pad"]]
    constant = given.get("mode", "constant") == "constant"
    for index, (left, right) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        axis = len(shape) - 1 - index
        if left == right == 0:
            continue
        if not constant or min(left, right) < 0:
            inference.freeze([shape[axis]], "it is padded by its own values, or cropped", node)
            shape[axis] = inference.frozen([shape[axis].size + left + right], "it is padded", node)[0]
            continue
        ends = Dim(left), Dim(right)
        for offset, end in enumerate(ends):
            if end.size:
                inference.is_size(node, "pad", end, 2 * index + offset)
        shape[axis] = concatenation([ends[0], shape[axis], ends[1]])
    return tuple(shape)


RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.cat, aten.concat, aten.concatenate), cat),
    aten.stack: stack,
    aten.split_with_sizes: split,
    **dict.fromkeys((aten.chunk, aten.split, aten.tensor_split, aten.unsafe_chunk, aten.unsafe_split), split_whatever),
    **dict.fromkeys((aten.slice, aten.narrow), cut_out),
    aten.select: select,
    aten.unbind: unbind,
    aten.slice_scatter: write_slice,
    aten.select_scatter: write_position,
    **dict.fromkeys((aten.pad, aten.constant_pad_nd), pad),
}
