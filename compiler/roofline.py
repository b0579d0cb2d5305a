"""How long a Program takes on a device at the least, estimated from the device's data sheet figures."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch import fx

from planish.compiler.cost import Costs, is_dequantize, is_quantize
from planish.compiler.hardware import HardwareProfile, peak_gops
from planish.compiler.program import Program
from planish.compiler.report import Latency

aten = torch.ops.aten

DtypeOf = Callable[[fx.Node], str]
"""The dtype (a key of a profile's ``peak_gops``) that a node computes in."""


def estimate_latency(
    program: Program, profile: HardwareProfile, batch: int = 1, dtype_of: DtypeOf | None = None
) -> Latency:
    """The time that ``program`` cannot take less than on the device: a roofline (Williams et al., 2009).

    Nodes run one after the other, each as long as its arithmetic or its memory traffic takes, whichever is
    longer. Element-wise ops run with the op that makes their input; views and Q/DQ nodes cost nothing.

    ``dtype_of`` says what each node computes in. Without it a node runs in int8 if all matrices it multiplies
    are dequantized; the others run in fp16 where the device has it and its backend chooses it on its own
    (TensorRT, Core ML), else in fp32.
    """
    costs = Costs(program, batch)
    native = float_dtype(profile)
    chosen = dtype_of or (lambda node: "int8" if _runs_in_integers(node, costs) else native)
    bandwidth = profile.memory.bandwidth_gb_s.value * 1e9
    missing: set[str] = set()
    seconds = 0.0
    for kernel in kernels(costs):
        arithmetic = traffic = 0.0
        for node in kernel:
            dtype = chosen(node)
            rate = peak_gops(profile, dtype)
            if rate is None:
                missing.add(dtype)
            arithmetic += 2 * costs.macs(node) / (1e9 * (rate.value if rate else _slowest_gops(profile)))
        traffic = _traffic(kernel, costs, native) / bandwidth
        seconds += max(arithmetic, traffic)
    how = (
        f"roofline of {profile.name}: peak rates and memory bandwidth, no launch overheads, "
        f"element-wise ops fused, floats in {native}, batch {costs.batch}"
    )
    for dtype in sorted(missing):
        how += f"; no unit has a rate for {dtype}, the slowest rate stands in"
    return Latency(median_ms=1e3 * seconds, batch=costs.batch, source="estimated", how=how)


def float_dtype(profile: HardwareProfile) -> str:
    """What floats are computed in on the device."""
    supported = profile.support.dtypes
    if "fp16" in supported and (profile.backend in ("tensorrt", "coreml") or "fp32" not in supported):
        return "fp16"
    return "fp32"


def _slowest_gops(profile: HardwareProfile) -> float:
    return min(rate.value for unit in profile.units for rate in unit.peak_gops.values())


def _runs_in_integers(node: fx.Node, costs: Costs) -> bool:
    """Whether every matrix that ``node`` multiplies is dequantized (a bias may be a float)."""
    matrices = [arg for arg in node.all_input_nodes if costs.shapes(arg) and len(costs.shape(arg)) > 1]
    return bool(matrices) and all(is_dequantize(_origin(arg)) for arg in matrices)


def _origin(node: fx.Node) -> fx.Node:
    """The node whose memory ``node`` shows: looks through views."""
    while _is_view(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _is_view(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return target is operator.getitem
    copies_if_it_must = target.overloadpacket in (aten.reshape, aten.flatten, aten.contiguous, aten.dropout)
    return copies_if_it_must or any(result.alias_info is not None for result in target._schema.returns)


def kernels(costs: Costs) -> list[list[fx.Node]]:
    """The nodes that cost time, each element-wise one with the op that makes its input for it alone."""
    kernels: list[list[fx.Node]] = []
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in costs.program.calls():
        if costs.folds(node) or not costs.shapes(node) or _is_view(node) or is_quantize(node) or is_dequantize(node):
            continue
        makers = [arg for arg in node.all_input_nodes if arg in last and len(arg.users) == 1]
        if makers and _is_element_wise(node):
            kernel = last[makers[-1]]
            kernel.append(node)
        else:
            kernel = [node]
            kernels.append(kernel)
        last[node] = kernel
    return kernels


def _is_element_wise(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return torch.Tag.pointwise in target.tags or target.overloadpacket is aten.batch_norm


def _traffic(kernel: list[fx.Node], costs: Costs, native: str) -> int:
    """Bytes that the nodes of a kernel read and write between them: weights, inputs and the last result."""
    inputs = {arg for node in kernel for arg in costs.activations(node)} - {*kernel}
    weights = {id(tensor): tensor for node in kernel for tensor, _ in costs.tensors_read(node)}
    read = sum(_stored(arg, costs, native) for arg in inputs)
    constant = sum(tensor.numel() * _width(tensor.dtype, native) for tensor in weights.values())
    return read + constant + _written(kernel[-1], costs, native)


def _stored(node: fx.Node, costs: Costs, native: str) -> int:
    """Bytes of a value as it lies in memory: integers, where ``node`` only dequantizes them."""
    origin = _origin(node)
    stored_as = origin.all_input_nodes[0] if is_dequantize(origin) else None
    return _sized(node, costs, native, stored_as)


def _written(node: fx.Node, costs: Costs, native: str) -> int:
    """Bytes of a result as it is written: integers, where all that read it quantize it first."""
    users = [*node.users]
    return _sized(node, costs, native, users[0] if users and all(map(is_quantize, users)) else None)


def _sized(node: fx.Node, costs: Costs, native: str, stored_as: fx.Node | None) -> int:
    other = costs.shapes(stored_as)[0][1] if stored_as is not None else None
    return sum(math.prod(shape) * _width(other or dtype, native) for shape, dtype in costs.shapes(node))


def _width(dtype: torch.dtype, native: str) -> int:
    return 2 if dtype.is_floating_point and native == "fp16" else dtype.itemsize
