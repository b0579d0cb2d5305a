"""What the Neural Engine is expected to take, by rules that others observed: an expectation, no measurement.

Apple publishes no list that we found; the page behind LAYERS calls itself incomplete and possibly wrong.
Which unit runs an operation, Core ML decides on the device; its compute plan and Xcode's performance report tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from planish.compiler.contracts import Check
from planish.compiler.cost import node_costs
from planish.compiler.program import Program, arguments

aten = torch.ops.aten
LAYERS = "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md"
FLEXIBLE = "https://developer.apple.com/forums/thread/724930"
"""Of a range of shapes, the default runs on the Neural Engine, others on the GPU or CPU: Apple's engineers."""
_CONVOLUTIONS = (
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding,
)  # fmt: skip
_POOLS = (aten.max_pool2d.default, aten.avg_pool2d.default)


def _recurrent(program: Program) -> Iterator[fx.Node]:
    yield from program.calls(
        aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input, aten.lstm_cell.default,
        aten.gru_cell.default,
    )  # fmt: skip


def _dilated(program: Program) -> Iterator[fx.Node]:
    for node in program.calls(*_CONVOLUTIONS):
        dilation = arguments(node)["dilation"]
        if any(step != 1 for step in (dilation if isinstance(dilation, (list, tuple)) else [dilation])):
            yield node


def _volumes(program: Program) -> Iterator[fx.Node]:
    yield from program.calls(aten.conv3d.default, aten.conv_transpose3d.input, aten.max_pool3d.default)


def _large_pools(program: Program) -> Iterator[fx.Node]:
    for node in program.calls(*_POOLS):
        kernel: Any = node.args[1]
        stride: Any = arguments(node)["stride"] or kernel
        if max(kernel) > 13 or max(stride) > 2:
            yield node


CHECKS = (
    Check("no-recurrent-layers", "Expect this on the CPU or GPU: the Neural Engine runs no recurrent layers.",
          _recurrent, "warning", LAYERS),
    Check("no-dilation", "Expect this on the CPU or GPU: the Neural Engine runs no dilated convolutions.",
          _dilated, "warning", LAYERS),
    Check("no-volumes", "Expect this on the CPU or GPU: the Neural Engine computes on images, not on volumes.",
          _volumes, "warning", LAYERS),
    Check("small-pools", "Expect this on the CPU or GPU: the Neural Engine pools at most 13 pixels, in steps of 2.",
          _large_pools, "warning", LAYERS),
)  # fmt: skip


def expected_share(program: Program, precision: str) -> str:
    """A sentence for the Report: the share of the MACs that no rule keeps off the Neural Engine."""
    told = "an expectation from observed rules, not a measurement"
    if precision != "float16":
        return f"No MACs are expected on the Neural Engine: it computes in float16, and this package in {precision}."
    kept_off = {node.name for check in CHECKS for node in check.offenders(program)}
    costs = node_costs(program)
    total = sum(cost.macs for cost in costs)
    if not total:
        return f"The model has no MACs to expect on the Neural Engine ({told})."
    share = sum(cost.macs for cost in costs if cost.node not in kept_off) / total
    rows = " at batch 1; larger batches on the GPU or CPU" if program.dynamic_axes else ""
    return f"About {share:.0%} of the MACs are expected on the Neural Engine{rows} ({told}; {FLEXIBLE})."
