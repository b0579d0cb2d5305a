"""Coupling rules of the ops that compute position by position or over axes: element-wise, norms, reductions, pools."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.coupling.dims import Dim, concatenation, product
from planish.compiler.coupling.inference import Inference, Rule, Shape, Type
from planish.compiler.program import arguments

aten = torch.ops.aten


def elementwise(node: fx.Node, inference: Inference) -> Type:
    """All tensors broadcast against each other; several results (``frexp``) have one Shape."""
    shape = inference.broadcast([inference.shape(argument) for argument in node.all_input_nodes])
    return shape if isinstance(node.meta["val"], Tensor) else [shape for _ in node.meta["val"]]


def like_first(node: fx.Node, inference: Inference) -> Shape:
    """The Shape of the first argument, whatever else is asked for (``to``, ``dropout``, ``zeros_like`` …)."""
    return inference.shape(node.args[0])


# ---------------------------------------------------------------------- norms


def per_channel(node: fx.Node, inference: Inference) -> Shape:
    """batch_norm, instance_norm: axis 1, and every parameter and statistic."""
    given = arguments(node)
    x = inference.shape(given["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        for dim in inference.shape(given[name]):
            inference.unify(x[1], dim)
    return x


def over_last(node: fx.Node, inference: Inference) -> Shape:
    """layer_norm, rms_norm: the last axes, whose sizes are written out."""
    given = arguments(node)
    x = inference.shape(given["input"])
    last = x[len(x) - len(given["normalized_shape"]) :]
    for index, dim in enumerate(last):
        inference.is_size(node, "normalized_shape", dim, index)
    for name in ("weight", "bias"):
        if shape := inference.shape(given.get(name)):
            inference.unify_shapes(last, shape)
    return x


def group_norm(node: fx.Node, inference: Inference) -> Shape:
    """C = groups x c; both may be cut."""
    given = arguments(node)
    x = inference.shape(given["input"])
    groups = Dim(given["num_groups"])
    inference.unify(x[1], product([groups, Dim(x[1].size // groups.size)]))
    inference.is_size(node, "num_groups", groups)
    for name in ("weight", "bias"):
        for dim in inference.shape(given[name]):
            inference.unify(x[1], dim)
    return x


def prelu(node: fx.Node, inference: Inference) -> Shape:
    """A slope a channel, or one for all."""
    x, slope = (inference.shape(argument) for argument in node.args[:2])
    if slope and slope[0].size > 1:
        inference.unify(x[1] if len(x) > 1 else x[0], slope[0])
    return x


def weight_norm(node: fx.Node, inference: Inference) -> Shape:
    """The result is v · g / |v|; g has size 1 where the norm is taken."""
    direction, magnitude = (inference.shape(argument) for argument in node.args[:2])
    for dim, other in zip(direction, magnitude, strict=True):
        if other.size != 1:
            inference.unify(dim, other)
    return direction


# ---------------------------------------------------------------------- over axes


def reduction(node: fx.Node, inference: Inference) -> Type:
    """mean, sum, amax, var, norm …: the axes vanish, or have size 1. They may be cut: fewer are averaged then."""
    value = node.meta["val"]
    shape = _reduced(node, inference, inference.shape(node.args[0]))
    return shape if isinstance(value, Tensor) else [shape for _ in value]


def _reduced(node: fx.Node, inference: Inference, x: Shape) -> Shape:
    given = arguments(node)
    axes = _axes(given.get("dim", given.get("dims")), len(x))
    if given.get("keepdim"):
        return tuple(Dim(1) if axis in axes else dim for axis, dim in enumerate(x))
    return tuple(dim for axis, dim in enumerate(x) if axis not in axes)


def _axes(named: Any, rank: int) -> set[int]:
    """The axes that ``dim`` means: all if none is named."""
    if named is None or named == []:
        return {*range(rank)}
    return {axis % rank for axis in ([named] if isinstance(named, int) else named)} if rank else set()


def position_of_extreme(node: fx.Node, inference: Inference) -> Type:
    """argmax, and max with its positions: results that number the positions of the axis."""
    if "other" in arguments(node):  # max(a, b)
        return elementwise(node, inference)
    x = inference.shape(node.args[0])
    named = arguments(node).get("dim")
    if not _gives_values_only(node):
        inference.freeze([x[axis] for axis in _axes(named, len(x))], "its positions are numbered", node)
    return reduction(node, inference)


def _gives_values_only(node: fx.Node) -> bool:
    """Whether it is a maximum or minimum whose positions nobody reads."""
    extreme = node.target.overloadpacket in (aten.max, aten.min)  # type: ignore[union-attr]
    items = [user for user in node.users if user.target is operator.getitem]
    return extreme and all(item.args[1] == 0 for item in items if item.users)


def top_positions(node: fx.Node, inference: Inference) -> Type:
    """topk: a few of the values along an axis, and their positions."""
    given, x = arguments(node), inference.shape(node.args[0])
    axis = given["dim"] % len(x)
    inference.freeze([x[axis]], "its positions are numbered", node)
    count = inference.frozen([inference.size(node.meta["val"][0].shape[axis])], "its positions are numbered", node)
    shape = (*x[:axis], *count, *x[axis + 1 :])
    return [shape, shape]


def fourier(node: fx.Node, inference: Inference) -> Shape:
    """Frequencies number the positions of the named axes, all if none is named."""
    given, x = arguments(node), inference.shape(node.args[0])
    axes = _axes(given["dim"], len(x))
    inference.freeze([x[axis] for axis in axes], "its positions become frequencies", node)
    sizes = inference.frozen(inference.sizes(node), "it numbers frequencies", node)
    return tuple(sizes[axis] if axis in axes else dim for axis, dim in enumerate(x))


def loss(node: fx.Node, inference: Inference) -> Shape:
    """Position by position, then one number where it is reduced."""
    shape = inference.broadcast([inference.shape(argument) for argument in node.all_input_nodes])
    return shape if arguments(node)["reduction"] == 0 else ()


def cross_product(node: fx.Node, inference: Inference) -> Shape:
    x = inference.broadcast([inference.shape(argument) for argument in node.args[:2]])
    inference.freeze([x[arguments(node)["dim"]]], "it holds the parts of a vector", node)
    return x


def distance(node: fx.Node, inference: Inference) -> Shape:
    """One number for two tensors, or one a row (``pairwise_distance``)."""
    x = inference.broadcast([inference.shape(argument) for argument in node.args[:2]])
    if "keepdim" not in arguments(node):
        return ()
    return (*x[:-1], Dim(1)) if arguments(node)["keepdim"] else x[:-1]


def softmax(node: fx.Node, inference: Inference) -> Shape:
    """To cut the axis would be legal as removal, but gives what is left other weights: it stays."""
    x = inference.shape(node.args[0])
    inference.freeze([x[arguments(node)["dim"]]] if x else [], "softmax spreads over it", node)
    return x


def glu(node: fx.Node, inference: Inference) -> Shape:
    """The halves of x gate each other: x = h + h."""
    x = inference.shape(node.args[0])
    axis = arguments(node)["dim"] % len(x)
    half = Dim(x[axis].size // 2)
    inference.unify(x[axis], concatenation([half, half]))
    return (*x[:axis], half, *x[axis + 1 :])


def cosine_similarity(node: fx.Node, inference: Inference) -> Shape:
    given = arguments(node)
    x = inference.broadcast([inference.shape(argument) for argument in node.args[:2]])
    return tuple(dim for axis, dim in enumerate(x) if axis != given["dim"] % len(x))


def triangle(node: fx.Node, inference: Inference) -> Shape:
    x = inference.shape(node.args[0])
    inference.freeze(x[-2:], "its positions are compared", node)
    return x


def complex_view(node: fx.Node, inference: Inference) -> Shape:
    """Pairs of numbers and complex ones: the axis of the pairs stays."""
    x = inference.shape(node.args[0])
    if node.target.overloadpacket is aten.view_as_complex:  # type: ignore[union-attr]
        inference.freeze(x[-1:], "it holds parts of complex numbers", node)
        return x[:-1]
    return (*x, *inference.frozen([2], "it holds parts of complex numbers", node))


_LIKE_FIRST = (
    aten.clone, aten.contiguous, aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout,
    aten.detach, aten.detach_, aten.alias, aten.to, aten.type_as, aten._to_copy, aten.lift_fresh_copy, aten.lift_fresh,
    aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like, aten.empty_like, aten.bernoulli,
    aten.relu6, aten.rrelu, aten.softplus, aten.log_sigmoid, aten.selu, aten.celu, aten.nan_to_num, aten.conj,
    aten.resolve_conj, aten.resolve_neg, aten.isin, aten.uniform, aten.exponential, aten.cauchy, aten.geometric,
    aten.log_normal, aten.normal_functional,
)  # fmt: skip
_ELEMENTWISE = (
    aten.where, aten.isclose, aten.masked_fill, aten.type_as, aten.square, aten.fmod, aten.lerp, aten.addcmul,
    aten.addcdiv, aten.clamp, aten.float_power, aten.true_divide, aten.subtract, aten.multiply, aten.divide,
    aten.greater, aten.less, aten.not_equal, aten.hardswish, aten.floor_divide, aten.negative, aten.absolute,
    aten.special_expit, aten.special_erf, aten.__and__, aten.__or__, aten.polar, aten.complex, aten.real, aten.imag,
    aten.copy, aten.fill, aten.zero,
)  # fmt: skip
_REDUCTIONS = (
    aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std, aten.norm, aten.prod, aten.any, aten.all,
    aten.linalg_vector_norm, aten.logsumexp, aten.var_mean, aten.std_mean, aten.nansum, aten.aminmax,
    aten.count_nonzero, aten.frobenius_norm,
)  # fmt: skip
_FOURIER = (
    "fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn",
    "irfftn", "fftshift", "ifftshift",
)  # fmt: skip
_LOSSES = (
    aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss, aten.binary_cross_entropy,
    aten.binary_cross_entropy_with_logits,
)  # fmt: skip
RULES: dict[Any, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(_LIKE_FIRST, like_first),
    **dict.fromkeys((aten.batch_norm, aten.instance_norm), per_channel),
    **dict.fromkeys((aten.layer_norm, aten.rms_norm), over_last),
    aten.group_norm: group_norm,
    aten.prelu: prelu,
    aten._weight_norm: weight_norm,
    **dict.fromkeys(_REDUCTIONS, reduction),
    **dict.fromkeys(
        (aten.argmax, aten.argmin, aten.max, aten.min, aten.median, aten.nanmedian, aten.mode, aten.kthvalue),
        position_of_extreme,
    ),
    aten.topk: top_positions,
    **{getattr(aten, f"fft_{name}"): fourier for name in _FOURIER},
    **dict.fromkeys((aten._fft_r2c, aten._fft_c2c, aten._fft_c2r), fourier),
    **dict.fromkeys(_LOSSES, loss),
    aten.linalg_cross: cross_product,
    **dict.fromkeys((aten.dist, aten.pairwise_distance), distance),
    **dict.fromkeys((aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax), softmax),
    aten.glu: glu,
    aten.cosine_similarity: cosine_similarity,
    **dict.fromkeys((aten.tril, aten.triu), triangle),
    **dict.fromkeys((aten.view_as_complex, aten.view_as_real), complex_view),
}
