"""Fold batch norms into the convolution or linear layer in front of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from planish.compiler.contracts import Context, Pass, Proposal, Situation, Stage
from planish.compiler.program import Program, add_tensor
from planish.compiler.shapes import ensure_shapes

aten = torch.ops.aten

_CONVS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """``batch_norm(conv(x))`` in evaluation is one convolution (arXiv:1502.03167, section 3.1).

    1. The layer is a convolution, or a linear map on two dimensions.
    2. Nothing but the batch norm reads the layer, and both have constant parameters.
    3. The batch norm uses running statistics.
    """

    name: ClassVar[str] = "fold-batch-norm"
    stage: ClassVar[Stage] = Stage.FOLDING
    exact: ClassVar[bool] = True

    def run(self, program: Program, context: Context) -> Program:
        program = program.fork().eval()
        ensure_shapes(program)
        for norm in [*program.calls(aten.batch_norm.default)]:
            if _folds(program, norm):
                _fold(program, norm)
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
        return program

    @classmethod
    def propose(cls, situation: Situation) -> Proposal | None:
        program = situation.program.fork()
        ensure_shapes(program)
        norms = [*program.calls(aten.batch_norm.default)]
        if not norms:
            return None
        folded = sum(_folds(program, norm) for norm in norms)
        return Proposal(
            cls() if folded else None, f"{folded} of {len(norms)} batch norms follow a layer that takes them in."
        )


def _folds(program: Program, norm: fx.Node) -> bool:
    layer = norm.args[0]
    if not isinstance(layer, fx.Node) or len(layer.users) > 1 or norm.args[5] is True or norm.args[3] is None:
        return False
    rank = layer.meta["val"].ndim
    if layer.target is aten.linear.default:
        fits = rank == 2
    elif layer.target in _CONVS or layer.target in _TRANSPOSED:
        fits = rank == layer.args[1].meta["val"].ndim  # type: ignore[union-attr] # with a batch
    else:
        return False
    if not fits:
        return False
    parameters = [layer.args[1], *layer.args[2:3], *norm.args[1:5]]
    return all(argument is None or program.tensor(argument) is not None for argument in parameters)


def _fold(program: Program, norm: fx.Node) -> None:
    layer = norm.args[0]
    assert isinstance(layer, fx.Node)
    weight, bias = program.tensor(layer.args[1]), program.tensor(layer.args[2]) if len(layer.args) > 2 else None
    scale, shift, mean, variance = (program.tensor(argument) for argument in norm.args[1:5])
    assert weight is not None and mean is not None and variance is not None
    epsilon = float(norm.args[7])  # type: ignore[arg-type]
    fused: tuple[Tensor, Tensor]
    if layer.target is aten.linear.default:
        scale = torch.ones_like(mean) if scale is None else scale
        shift = torch.zeros_like(mean) if shift is None else shift
        fused = fuse_linear_bn_weights(weight, bias, mean, variance, epsilon, scale, shift)
    elif layer.target in _CONVS:
        fused = fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, scale, shift)
    else:
        groups = int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]
        whole, bias = fuse_conv_bn_weights(
            _side_by_side(weight, groups), bias, mean, variance, epsilon, scale, shift, transpose=True
        )
        fused = (_one_below_another(whole, groups), bias)
    stem = str(layer.args[1].target)  # type: ignore[union-attr]
    names = (f"{stem}_folded", f"{stem}_folded_bias")
    nodes = [add_tensor(program, name, _parameter(tensor)) for name, tensor in zip(names, fused, strict=True)]
    layer.args = (layer.args[0], *nodes, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    program.graph.erase_node(norm)


def _side_by_side(weight: Tensor, groups: int) -> Tensor:
    """``[inputs, outputs / groups, …]`` of a transposed convolution as ``[inputs / groups, outputs, …]``."""
    parts: Tensor = weight.unflatten(0, (groups, -1))
    return parts.transpose(0, 1).flatten(1, 2)


def _one_below_another(weight: Tensor, groups: int) -> Tensor:
    """``[inputs / groups, outputs, …]`` as ``[inputs, outputs / groups, …]`` again."""
    parts: Tensor = weight.unflatten(1, (groups, -1))
    return parts.transpose(0, 1).flatten(0, 1)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=True)
