"""Tensors of more than five dimensions, computed on five or less: Core ML has no others.

https://github.com/apple/coremltools/blob/main/coremltools/converters/mil/mil/program.py

For each such value stands another, with the same numbers in the same order on fewer dimensions. Rules:

1. Reshaping leaves numbers in order: nothing is left to do.
2. A permutation moves dimensions that stay side by side as one. What is still on more than five is done by swaps of two
   neighbouring blocks of dimensions, each on four.
3. Elementwise operators join neighbours along which the same operands are broadcast. Where more than five are left,
   operands are expanded first, as ``expand`` is: one block of dimensions at a time.
4. What works along one dimension has all in front of it as one, and all behind it.
5. Reductions have neighbours that they reduce as one, and those that they keep; where these alternate too often, they
   are permuted first.
6. Products with matrices, attention and layer norm keep their last dimensions, and join the others as in 3.

What has no rule stays as it is, and a Check names it.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from planish.backends.to_coreml.calls import Calls
from planish.backends.to_coreml.ranks import MAX_RANK, Ranks, Stays, is_high, product, shape_of
from planish.compiler.program import Program, arguments
from planish.compiler.shapes import ensure_shapes

aten = torch.ops.aten
Rule = Callable[[Ranks, fx.Node], fx.Node]


def on_few_dimensions(program: Program) -> None:
    """Rewrite the graph of ``program`` wherever it has more dimensions than Core ML."""
    if not any(map(is_high, program.graph.nodes)):
        return
    ensure_shapes(program)
    ranks, replaced = Ranks(program), []
    for node in [*program.calls()]:
        if is_high(node) or any(is_high(each) or each in ranks.stand_ins for each in node.all_input_nodes):
            with program.graph.inserting_before(node):
                if _follows(ranks, node):
                    replaced.append(node)
    for node in reversed(replaced):
        if not node.users:
            program.graph.erase_node(node)  # also where it is random: dropout, attention


def _follows(ranks: Ranks, node: fx.Node) -> bool:
    """Whether there is a rule for ``node``; it has been followed then."""
    rule = _rule(node.target)
    if rule is None:
        return False
    ranks.call, value = Calls(ranks.program, node), node.meta["val"]
    try:
        made = rule(ranks, node)
        if isinstance(value, Tensor) and not is_high(node):
            made = ranks.reshaped(made, value.shape)
    except Stays:
        return False
    if is_high(node) or isinstance(value, (tuple, list)):
        ranks.stand_ins[node] = made
    else:
        made.meta["val"] = value
        node.replace_all_uses_with(made)
    return True


def _rule(target: Any) -> Rule | None:
    if target in RULES or not isinstance(target, torch._ops.OpOverload):
        return RULES.get(target)
    return _elementwise if torch.Tag.pointwise in target.tags else None


def _view(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 1."""
    return ranks.stand_in(node.args[0])


def _getitem(ranks: Ranks, node: fx.Node) -> fx.Node:
    whole, place = node.args
    if not isinstance(whole, fx.Node) or whole not in ranks.stand_ins:
        raise Stays
    return ranks.call(operator.getitem, ranks.stand_ins[whole], place)


def _size(ranks: Ranks, node: fx.Node) -> fx.Node:
    """The only dynamic size, in front of all others."""
    given = arguments(node)
    source, shape = given["self"], shape_of(given["self"])
    rest = [size for at, size in enumerate(shape) if at != given["dim"] % len(shape)]
    if product(rest) < 0:
        raise Stays
    return ranks.call(node.target, ranks.reshaped(ranks.stand_in(source), [-1, product(rest)]), 0)


def _permutation(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 2; where each dimension goes tells a tensor whose dimensions have different sizes."""
    target: Any = node.target
    source, *rest = node.args
    probe = torch.empty([*range(len(shape_of(source)))], device="meta")
    return ranks.permuted(source, [*target(probe, *rest, **node.kwargs).shape])


def _elementwise(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 3; numbers stay as they are."""
    tensors = [each for each in node.all_input_nodes if isinstance(each.meta["val"], Tensor) and shape_of(each)]
    if len(tensors) == 1:
        operands = {tensors[0]: ranks.stand_in(tensors[0])}
    else:
        operands = ranks.aligned(tensors, shape_of(node), 0, MAX_RANK)
    return _with(ranks, node, operands)


def _with(ranks: Ranks, node: fx.Node, operands: dict[fx.Node, fx.Node]) -> fx.Node:
    args, kwargs = map_arg((node.args, node.kwargs), lambda each: operands.get(each, each))
    return ranks.call(node.target, *args, **kwargs)


def _expansion(ranks: Ranks, node: fx.Node) -> fx.Node:
    source, wanted = node.args[0], shape_of(node)
    own = shape_of(source)
    return ranks.expanded(source, [1] * (len(wanted) - len(own)) + own, wanted)


def _along(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 4."""
    given = arguments(node)
    first, name = next(iter(given)), "dimension" if "dimension" in given else "dim"
    if not isinstance(given[name], int):
        raise Stays
    whole = given[first]
    cut = [ranks.around(each, given[name]) for each in (whole if isinstance(whole, (list, tuple)) else [whole])]
    return ranks.call.like(node, **{first: cut[0] if isinstance(whole, fx.Node) else cut, name: 1})


def _stack(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 4."""
    given = arguments(node)
    dim = given["dim"] % len(shape_of(node))
    shape = shape_of(given["tensors"][0])
    sizes = [product(shape[:dim]), 1, product(shape[dim:])]
    return ranks.call(aten.cat.default, [ranks.reshaped(ranks.stand_in(each), sizes) for each in given["tensors"]], 1)


def _one_by_one(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 4: flip and roll, along one dimension after the other."""
    given = arguments(node)
    source, dims = given["self"], given["dims"]
    if not dims:
        return ranks.call.like(node, self=ranks.reshaped(ranks.stand_in(source), [-1]), dims=[0])
    shape, value = shape_of(source), ranks.stand_in(source)
    for place, dim in enumerate(dims):
        at = dim % len(shape)
        three = ranks.reshaped(value, [product(shape[:at]), shape[at], product(shape[at + 1 :])])
        changed = {"shifts": [given["shifts"][place]]} if "shifts" in given else {}
        value = ranks.call.like(node, self=three, dims=[1], **changed)
    return value


def _reduction(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 5."""
    given = arguments(node)
    source = given["self"]
    shape, dim = shape_of(source), given["dim"]
    dims = {each % len(shape) for each in ([dim] if isinstance(dim, int) else dim or range(len(shape)))}
    runs = [[*run] for _, run in itertools.groupby(range(len(shape)), lambda each: each in dims)]
    if len(runs) <= MAX_RANK:
        value = ranks.reshaped(ranks.stand_in(source), [product(shape[each] for each in run) for run in runs])
        places = [place for place, run in enumerate(runs) if run[0] in dims]
    else:
        kept = [each for each in range(len(shape)) if each not in dims]
        moved = ranks.permuted(source, [*kept, *sorted(dims)])
        value, places = ranks.reshaped(moved, [product(shape[each] for each in part) for part in (kept, dims)]), [1]
    return ranks.call.like(node, self=value, dim=places, **({"keepdim": False} if "keepdim" in given else {}))


def _on_rows(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 6: linear, and a product with one matrix."""
    source, *rest = node.args
    shape = shape_of(source)
    rows = ranks.reshaped(ranks.stand_in(source), [product(shape[:-1]), shape[-1]])
    return ranks.call(node.target, rows, *rest, **node.kwargs)


def _normalization(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 6."""
    args: Any = node.args
    source, sizes, *rest = args
    shape = shape_of(source)
    front = len(shape) - len(sizes)
    if len(sizes) >= MAX_RANK:
        raise Stays
    rows = ranks.reshaped(ranks.stand_in(source), [product(shape[:front]), *shape[front:]])
    return ranks.call(node.target, rows, sizes, *rest, **node.kwargs)


def _product_of_matrices(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 6."""
    args: Any = node.args
    a, b = args
    if len(shape_of(b)) <= 2:
        return _on_rows(ranks, node)
    if len(shape_of(a)) < 2:
        raise Stays
    operands = ranks.aligned([a, b], shape_of(node)[:-2], 2, MAX_RANK - 2)
    return ranks.call(node.target, operands[a], operands[b])


def _attention(ranks: Ranks, node: fx.Node) -> fx.Node:
    """Rule 6."""
    tensors = [*node.all_input_nodes]
    operands = ranks.aligned(tensors, shape_of(node)[:-2], 2, 2)
    return _with(ranks, node, operands)


_VIEWS = (
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.view_as.default,
    aten.reshape_as.default, aten.contiguous.default, aten.detach.default,
)  # fmt: skip
_PERMUTATIONS = (
    aten.permute.default, aten.transpose.int, aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int,
    aten.moveaxis.intlist, aten.swapaxes.default, aten.swapdims.default, aten.mT.default, aten.adjoint.default,
)  # fmt: skip
_ELEMENTWISE = (
    aten.clone.default, aten.dropout.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other,
    aten.type_as.default, aten._to_copy.default, aten.hardswish.default, aten.log_sigmoid.default,
    aten.negative.default, aten.multiply.Tensor, aten.subtract.Tensor, aten.arctan2.default, aten.__and__.Tensor,
    aten.__or__.Tensor, aten.__xor__.Tensor, aten.zeros_like.default, aten.ones_like.default, aten.full_like.default,
)  # fmt: skip
"""Those that PyTorch does not tag as such."""
_ALONG = (
    aten.softmax.int, aten.log_softmax.int, aten.cumsum.default, aten.cumprod.default, aten.slice.Tensor,
    aten.narrow.default, aten.select.int, aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default,
    aten.chunk.default, aten.index_select.default, aten.cat.default, aten.concat.default,
    aten.repeat_interleave.self_int, aten.sort.default, aten.argsort.default, aten.topk.default, aten.glu.default,
    aten.unfold.default, aten.max.dim, aten.min.dim, aten.argmax.default, aten.argmin.default, aten.prod.dim_int,
    aten.any.dim, aten.all.dim, aten.median.dim,
)  # fmt: skip
_REDUCTIONS = (
    aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.var.correction,
    aten.std.correction, aten.var_mean.correction, aten.logsumexp.default,
)  # fmt: skip
RULES: dict[Any, Rule] = {
    **dict.fromkeys(_VIEWS, _view),
    **dict.fromkeys(_PERMUTATIONS, _permutation),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    operator.getitem: _getitem, aten.sym_size.int: _size, aten.expand.default: _expansion, aten.stack.default: _stack,
    aten.flip.default: _one_by_one, aten.roll.default: _one_by_one, aten.linear.default: _on_rows,
    aten.layer_norm.default: _normalization, aten.rms_norm.default: _normalization,
    aten.matmul.default: _product_of_matrices, aten.scaled_dot_product_attention.default: _attention,
}  # fmt: skip
