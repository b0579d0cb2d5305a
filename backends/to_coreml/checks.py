"""What a Program has to fulfil for Core ML, and what is expected to fall off the Neural Engine."""

from __future__ import annotations

import importlib.util
import operator
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from planish.backends.to_coreml import neural_engine
from planish.backends.to_coreml.ranks import MAX_RANK
from planish.backends.to_coreml.recurrent_converters import UNROLLED, is_unrolled
from planish.backends.to_coreml.rewrites import RULES, rewrite
from planish.compiler.complex_numbers import real_numbers
from planish.compiler.contracts import Check
from planish.compiler.program import Program, arguments
from planish.compiler.shapes import ensure_shapes

_OPERATIONS = "https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html"
_PROGRAM = "https://github.com/apple/coremltools/blob/main/coremltools/converters/mil/mil/program.py"
_FLOATS = frozenset({torch.float16, torch.float32, torch.float64})


def _values(program: Program) -> Iterator[tuple[fx.Node, Tensor]]:
    ensure_shapes(program)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op in ("call_function", "placeholder") and isinstance(value, Tensor):
            yield node, value


def _high_ranks(program: Program) -> Iterator[fx.Node]:
    for node, value in _values(rewrite(real_numbers(program))):
        if value.ndim > MAX_RANK:
            yield node


def _foreign_types(program: Program) -> Iterator[fx.Node]:
    for node, value in _values(real_numbers(program)):
        if value.dtype.is_complex or (value.is_floating_point() and value.dtype not in _FLOATS):
            yield node


def _doubles(program: Program) -> Iterator[fx.Node]:
    for node, value in _values(program):
        if value.dtype is torch.float64:
            yield node


def _without_converter(program: Program) -> Iterator[fx.Node]:
    if importlib.util.find_spec("coremltools") is None:
        return  # lowering says what to install
    from planish.backends.to_coreml.convert import quiet, table
    from planish.backends.to_coreml.converters import is_known

    with quiet():
        real = real_numbers(program)
        parts = table(real.graph)
        for node in real.calls():
            known = node.target is operator.getitem or is_known(node.target)
            if not (known or node.target in parts or node.target in RULES or _is_composite(node.target)):
                yield node


def _is_composite(target: object) -> bool:
    """Whether PyTorch itself writes the operator in others while it exports."""
    return isinstance(target, torch._ops.OpOverload) and (
        target._can_decompose() or target._schema.is_mutable or target.namespace == "quantized_decomposed"
    )


def _long_gates(program: Program) -> Iterator[fx.Node]:
    ensure_shapes(program)
    for node in program.calls(torch.ops.aten.gru.input):
        given = arguments(node)
        steps = given["input"].meta["val"].shape[1 if given["batch_first"] else 0]
        if not is_unrolled(steps, given["num_layers"] * (2 if given["bidirectional"] else 1)):
            yield node


CHECKS = (
    Check("rank-at-most-5", "Compute on at most five dimensions: Core ML has no tensors of more.",
          _high_ranks, source=_PROGRAM),
    Check("real-numbers", "Compute in float32 or float16: Core ML has neither complex numbers nor bfloat16.",
          _foreign_types, source=_OPERATIONS),
    Check("has-a-converter", "Replace this operator by others: neither coremltools nor planish converts it.",
          _without_converter, source=_OPERATIONS),
    Check("single-precision", "float64 is computed in float32 or less: Core ML has no more.",
          _doubles, "warning", _OPERATIONS),
    Check("long-gru-unproven-upstream",
          f"Check a GRU of more than {UNROLLED} steps on the device (verify.swift): it stays Core ML's own, which "
          "Chromium found to be right on the CPU only.",
          _long_gates, "warning",
          "https://github.com/webmachinelearning/webnn/issues/689"),
    *neural_engine.CHECKS,
)  # fmt: skip
