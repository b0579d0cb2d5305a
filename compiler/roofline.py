"""How long a Program takes on a device at the least, estimated from the figures of its profile.

The one model of time that is not measured: the judge of absent devices, the plan, and the passes that cut for a
latency use it, at the widths that are there or at others.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import fx

from planish.compiler.cost import Costs, is_dequantize, is_quantize
from planish.compiler.hardware import HardwareProfile, peak_gops
from planish.compiler.macs import Shape, macs
from planish.compiler.program import Program, arguments
from planish.compiler.report import Latency
from planish.compiler.two_four import two_four_products

aten = torch.ops.aten

DtypeOf = Callable[[fx.Node], str]
"""The dtype (a key of a profile's ``peak_gops``) that a node computes in."""
ShapeOf = Callable[[fx.Node], Shape]

BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
COMPRESSED = {"fp16": 9 / 16, "int8": 5 / 8}
"""Bytes of a 2:4 weight over those of a dense one: half of the values, and two bits for the place of each."""
_CONVOLUTIONS = (
    *(aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution, aten._convolution),
    *(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
)
_LOOKUPS = (aten.embedding, aten.index, aten.index_select, aten.gather)
"""Ops that read as much of a table as they write, and not all of it."""


def estimate_latency(
    program: Program,
    profile: HardwareProfile,
    batch: int = 1,
    dtype_of: DtypeOf | None = None,
    sparse: Collection[fx.Node] | None = None,
) -> Latency:
    """The time of one call of ``program`` on the device, as ``Roofline`` has it."""
    roofline = Roofline(Costs(program, batch), profile, dtype_of, sparse)
    seconds = sum(map(roofline.seconds, roofline.kernels))
    return Latency(median_ms=1e3 * seconds, batch=roofline.costs.batch, source="estimated", how=roofline.how())


@dataclass(frozen=True)
class Kernel:
    """Nodes that run as one: an op, and the element-wise ops that read its result."""

    nodes: tuple[fx.Node, ...]
    dtype: str
    """What it computes in."""
    gops: float
    half_rate_channels: float
    multiplying: tuple[fx.Node, ...]
    moved: tuple[tuple[fx.Node, float], ...]
    """What it reads and writes: (value, bytes of one item of it)."""
    overhead: float
    """Seconds that it takes whatever its size."""


class Roofline:
    """Kernels one after the other, each as long as its arithmetic or its memory traffic takes, and an overhead.

    Whichever of the two is longer (Williams et al., 2009). The overhead of a kernel, and how much slower narrow
    layers run, are the profile's, where it has them. Views and Q/DQ nodes cost nothing.

    ``dtype_of`` says what each node computes in and stores. Without it a node runs in int8 if all matrices it
    multiplies are dequantized; the others run in fp16 where the device has it and its backend chooses it on its own
    (TensorRT, Core ML), else in fp32. ``sparse`` are the products that run at the 2:4 rate of the profile; without it
    those whose weights are 2:4 and wide enough for the device.
    """

    def __init__(
        self,
        costs: Costs,
        profile: HardwareProfile,
        dtype_of: DtypeOf | None = None,
        sparse: Collection[fx.Node] | None = None,
    ) -> None:
        self.costs, self._profile, self._dtype_of = costs, profile, dtype_of
        self._native = float_dtype(profile)
        self._bandwidth = profile.memory.bandwidth_gb_s.value * 1e9
        self._sparse = two_four_products(costs.program, profile) if sparse is None else sparse
        self.kernels = tuple(self._kernel(nodes) for nodes in _fused(costs))

    def seconds(self, kernel: Kernel, shape: ShapeOf | None = None, computed: ShapeOf | None = None) -> float:
        """What ``kernel`` takes, at other widths with a ``shape``; ``computed``: the shapes that it multiplies as."""
        shape = shape or self.costs.shape
        arithmetic = sum(self._arithmetic(kernel, node, computed or shape) for node in kernel.multiplying)
        traffic = sum(math.prod(shape(value)) * item for value, item in kernel.moved)
        return max(arithmetic, traffic / self._bandwidth) + kernel.overhead

    def _arithmetic(self, kernel: Kernel, node: fx.Node, shape: ShapeOf) -> float:
        """Seconds at the peak rate times n / (n + n½), n being the channels (Hockney and Jesshope, 1981)."""
        convolves = getattr(node.target, "overloadpacket", None) in _CONVOLUTIONS
        axis = 1 - len(shape(arguments(node)["weight"])) if convolves else -1
        channels = [shape(value)[axis] for value in (node, *self.costs.activations(node)) if shape(value)]
        slower = 1 + kernel.half_rate_channels / min(channels)
        return 2e-9 * macs(node, shape) * slower / kernel.gops

    def how(self) -> str:
        """What the estimate assumes, for a Report."""
        dtypes = sorted({kernel.dtype for kernel in self.kernels})
        how = (
            f"roofline of {self._profile.name}: peak rates and memory bandwidth, {', '.join(self._losses(dtypes))}, "
            f"element-wise ops fused, floats in {self._native}, batch {self.costs.batch}"
        )
        if count := sum(self._is_sparse(kernel.nodes[0], kernel.dtype) for kernel in self.kernels):
            how += f"; {count} products with 2:4 weights at the sparse rate, if the runtime picks its sparse kernels"
        for dtype in dtypes:
            if peak_gops(self._profile, dtype) is None:
                how += f"; no unit has a rate for {dtype}, the slowest rate stands in"
        return how

    def _losses(self, dtypes: list[str]) -> Iterator[str]:
        profile = self._profile
        for table, known, unknown in (
            (profile.kernel_overhead_us, "{:.3g} us a kernel in {}", "no overhead of kernels in {}"),
            (profile.half_rate_channels, "half the rate at {:.3g} channels in {}", "no loss by narrow layers in {}"),
        ):
            yield from (known.format(table[dtype].value, dtype) for dtype in dtypes if dtype in table)
            if missing := [dtype for dtype in dtypes if dtype not in table]:
                yield unknown.format(" and ".join(missing))

    # ------------------------------------------------------------------ kernels

    def _kernel(self, nodes: list[fx.Node]) -> Kernel:
        dtype = self._computes_in(nodes[0])
        is_sparse = self._is_sparse(nodes[0], dtype)
        rate = peak_gops(self._profile, f"{dtype}_sparse" if is_sparse else dtype)
        narrow, overhead = (
            table.get(dtype) for table in (self._profile.half_rate_channels, self._profile.kernel_overhead_us)
        )
        return Kernel(
            nodes=tuple(nodes),
            dtype=dtype,
            gops=rate.value if rate else _slowest_gops(self._profile),
            half_rate_channels=narrow.value if narrow else 0.0,
            multiplying=tuple(node for node in nodes if self.costs.macs(node)),
            moved=tuple(self._moved(nodes, dtype, is_sparse)),
            overhead=overhead.value / 1e6 if overhead else 0.0,
        )

    def _computes_in(self, node: fx.Node) -> str:
        if self._dtype_of is not None:
            return self._dtype_of(node)
        return "int8" if _runs_in_integers(node, self.costs) else self._native

    def _is_sparse(self, node: fx.Node, dtype: str) -> bool:
        return node in self._sparse and peak_gops(self._profile, f"{dtype}_sparse") is not None

    def _moved(self, nodes: list[fx.Node], dtype: str, is_sparse: bool) -> Iterator[tuple[fx.Node, float]]:
        """What the nodes of a kernel read and write between them: weights, inputs and the last result."""
        floats = self._native if self._dtype_of is None else dtype
        for value in dict.fromkeys(value for node in nodes for value in node.all_input_nodes):
            if value in nodes or not self.costs.shapes(value):
                continue
            is_constant = self.costs.folds(value)
            if is_constant and getattr(nodes[0].target, "overloadpacket", None) in _LOOKUPS:
                continue
            packed = COMPRESSED[dtype] if is_sparse and is_constant and len(self.costs.shape(value)) > 1 else 1.0
            yield value, packed * self._item_bytes(value, _stored_as(value), floats)
        yield nodes[-1], self._item_bytes(nodes[-1], _written_as(nodes[-1]), floats)

    def _item_bytes(self, value: fx.Node, stored_as: fx.Node | None, floats: str) -> float:
        dtype = self.costs.shapes(stored_as or value)[0][1]
        return min(BYTES[floats], dtype.itemsize) if dtype.is_floating_point else dtype.itemsize


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


def _stored_as(value: fx.Node) -> fx.Node | None:
    """The integers that lie in memory where ``value`` only dequantizes them."""
    origin = _origin(value)
    return origin.all_input_nodes[0] if is_dequantize(origin) else None


def _written_as(result: fx.Node) -> fx.Node | None:
    """The integers that are written where all that read ``result`` quantize it first."""
    users = [*result.users]
    return users[0] if users and all(map(is_quantize, users)) else None


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


def _fused(costs: Costs) -> list[list[fx.Node]]:
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
