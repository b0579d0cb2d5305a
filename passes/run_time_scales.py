"""Quantize and dequantize nodes whose scales are chosen in each call, from the values that are there.

The nodes are those of PyTorch's PT2E dialect. One scale for a tensor, or one for each row along its last dimension.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from planish.compiler.program import Program
from planish.compiler.scheme import IntegerType

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
decomposed = torch.ops.quantized_decomposed

SMALLEST_SCALE = float(torch.finfo(torch.float32).eps)


def quantize_at_run_time(program: Program, reads: Sequence[tuple[fx.Node, fx.Node, IntegerType]]) -> None:
    """Put such a pair between producer and reader of each of ``reads``, in the order of the graph.

    Readers that take one value as the same type share the pair.
    """
    made: dict[tuple[fx.Node, IntegerType], fx.Node] = {}
    for producer, reader, kind in reads:
        if (producer, kind) not in made:
            made[producer, kind] = _pair(program.graph, producer, reader, kind)
        reader.replace_input_with(producer, made[producer, kind])


def _pair(graph: fx.Graph, producer: fx.Node, reader: fx.Node, kind: IntegerType) -> fx.Node:
    def call(target: Any, *arguments: Any) -> fx.Node:
        node = graph.call_function(target, arguments)
        if "nn_module_stack" in reader.meta:
            node.meta["nn_module_stack"] = reader.meta["nn_module_stack"]
        return node

    limits = (kind.minimum, kind.maximum)
    with graph.inserting_before(reader):
        if kind.granularity == "row":
            chosen = call(decomposed.choose_qparams_per_token_asymmetric.default, producer, kind.dtype)
        else:
            chosen = call(decomposed.choose_qparams.tensor, producer, *limits, SMALLEST_SCALE, kind.dtype)
        scales = [call(operator.getitem, chosen, place) for place in (0, 1)]
        if kind.granularity == "row":
            integers = call(decomposed.quantize_per_token.default, producer, *scales, *limits, kind.dtype)
            return call(decomposed.dequantize_per_token.default, integers, *scales, *limits, kind.dtype, torch.float32)
        integers = call(decomposed.quantize_per_tensor.tensor, producer, *scales, *limits, kind.dtype)
        return call(decomposed.dequantize_per_tensor.tensor, integers, *scales, *limits, kind.dtype)
