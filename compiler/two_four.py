"""2:4 sparsity: which products have kernels for it, and whether a constant weight has the zeros that they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.cost import is_dequantize
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program, arguments

aten = torch.ops.aten

_WEIGHTS: Mapping[Any, tuple[str, int]] = {
    aten.linear: ("weight", 1),
    **dict.fromkeys((aten.conv1d, aten.conv2d, aten.conv3d), ("weight", 1)),
    aten.matmul: ("other", 0),
    **dict.fromkeys((aten.mm, aten.addmm), ("mat2", 0)),
}
"""Op -> the argument that may be a constant weight, and the axis of it that is summed over."""


def has_kernel(inputs: int, outputs: int) -> bool:
    """Whether kernels take a product of that many channels.

    https://developer.nvidia.com/blog/accelerating-inference-with-sparsity-using-ampere-and-tensorrt/ (not with groups:
    https://github.com/NVIDIA/TensorRT/issues/4054).
    """
    return inputs % 16 == 0 and outputs % 8 == 0


def min_channels(profile: HardwareProfile) -> int:
    """From how many channels on sparse kernels are faster on the device; 1 where its profile does not say."""
    least = profile.support.sparse_min_channels
    return 1 if least is None else int(least.value)


def two_four_products(program: Program, profile: HardwareProfile) -> frozenset[fx.Node]:
    """The products that the device computes with 2:4 kernels: their weights have the zeros, and are wide enough."""
    if "2:4" not in profile.support.sparsity:
        return frozenset()
    least = min_channels(profile)
    return frozenset(node for node in program.calls() if _is_sparse_product(program, node, least))


def _is_sparse_product(program: Program, node: fx.Node, least: int) -> bool:
    name, axis = _WEIGHTS.get(getattr(node.target, "overloadpacket", None), ("", 0))
    if not name:
        return False
    given = arguments(node)
    weight = _constant(program, given[name])
    if weight is None or weight.ndim < 2 or given.get("groups", 1) != 1:
        return False
    inputs, outputs = weight.shape[axis], weight.shape[1 - axis]
    return min(inputs, outputs) >= least and has_kernel(inputs, outputs) and is_two_four(weight, axis)


def _constant(program: Program, value: fx.Node) -> Tensor | None:
    return program.tensor(value.all_input_nodes[0] if is_dequantize(value) else value)


def is_two_four(weight: Tensor, axis: int) -> bool:
    """Whether of any four neighbours along ``axis``, a multiple of four long, at most two are not zero."""
    filled = (weight.detach() != 0).movedim(axis, -1)
    return bool((filled.unflatten(-1, (-1, 4)).sum(-1) <= 2).all())
