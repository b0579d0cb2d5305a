"""Program -> coremltools' model: decomposed as far as the converters know, each node converted under guard."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from torch._export.verifier import Verifier
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from planish.backends.to_coreml.converters import LOCK, Refused, guarded, is_known
from planish.backends.to_coreml.decompositions import DECOMPOSITIONS
from planish.backends.to_coreml.flat import BORDER, Flat, flat
from planish.backends.to_coreml.float16 import with_own_cast
from planish.backends.to_coreml.interface import Image
from planish.backends.to_coreml.ranks import MAX_RANK
from planish.backends.to_coreml.rewrites import rewrite
from planish.backends.to_coreml.scheme import RANGES
from planish.compiler.complex_numbers import real_numbers
from planish.compiler.decompose import own_decompositions
from planish.compiler.errors import LoweringError
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.scheme import Operator

aten = torch.ops.aten
_ROUNDS = 8
"""Operators, one a round, that coremltools knows by name but not in the form at hand, and that are decomposed."""
_DECOMPOSED: tuple[Operator, ...] = (
    # Epsilon grows with the largest value: https://github.com/apple/coremltools/issues/2821
    aten.rms_norm.default,
    # Heads are not repeated, whatever enable_gqa says
    aten._scaled_dot_product_flash_attention_for_cpu.default,
)
_LEFT_OUT = frozenset({
    # x * w + b becomes a batch_norm with an epsilon of 1e-5: relative errors of 5e-6 in every such place;
    # reported nowhere that we found
    "common::fuse_elementwise_to_batchnorm",
    # w / convolution(x) becomes a convolution: https://github.com/apple/coremltools/pull/2776
    # and with groups a transposed one takes the factors of other channels than its own
    "common::fuse_conv_scale",
})  # fmt: skip
_LEFT_OUT_IN_GROUPS = frozenset({"common::fuse_conv_batchnorm"})
"""A batch norm behind a transposed convolution in groups is folded into other channels than its own. Reported nowhere
that we found; PyTorch's own folding has the same: https://github.com/pytorch/pytorch/issues/180995"""
_GROUPS_OF_TRANSPOSED = {
    aten.conv_transpose1d.default: 6, aten.conv_transpose2d.input: 6, aten.conv_transpose3d.input: 6,
    aten.convolution.default: 8,
}  # fmt: skip
"""Where the number of groups stands."""


@dataclass(frozen=True)
class Options:
    """What the user chose, as far as it concerns the conversion."""

    precision: str = "float16"
    largest_batch: int = 32
    images: Mapping[str, Image] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """What coremltools made: an MLModel whose package lies in a folder of its own until it is saved."""

    model: Any
    flat: Flat
    decomposed: tuple[str, ...]
    """Operators that were taken apart although coremltools knows their names."""


def convert(program: Program, target: Any, options: Options) -> Converted:
    """The ML Program of ``program`` for the deployment ``target``.

    Raises LoweringError with the node and module that cannot be converted.
    """
    refuse_ranges(program)
    flattened = flat(rewrite(real_numbers(program)), options.largest_batch, options.images)
    apart: set[Any] = {*_DECOMPOSED}
    told: list[str] = []
    exported = flattened.exported
    while True:
        exported = decomposed(exported, apart)
        _from_one_on(exported)
        _demand_known(exported)
        try:
            with guarded(exported.graph), quiet():
                model = _convert(exported, flattened, target, options)
            return Converted(model, flattened, tuple(told))
        except Refused as failure:
            node = next((each for each in exported.graph.nodes if each.name == failure.node), None)
            if node is None or node.target not in table(exported.graph) or node.target in apart or len(told) == _ROUNDS:
                raise
            apart.add(node.target)
            told.append(f"{op_name(node)} ({failure.args[0]})")
        except Exception as failure:
            raise _failed(exported.graph, failure) from failure


def _failed(graph: fx.Graph, failure: Exception) -> LoweringError:
    """Names the first node of too many dimensions, if there is one: coremltools takes some of them apart."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.ndim > MAX_RANK:
            return LoweringError(
                f"Compute on at most five dimensions, all that Core ML has: {op_name(node)} gives {value.ndim}",
                component="coreml", node=node.name, module=source_module(node),
            )  # fmt: skip
    first = next(iter(str(failure).strip().splitlines()), type(failure).__name__)
    return LoweringError(f"coremltools fails on the whole model: {first}", component="coreml")


def decomposed(exported: ExportedProgram, apart: set[Any]) -> ExportedProgram:
    """Functional, and every operator without a converter (or in ``apart``) taken apart as PyTorch does."""
    known = table(exported.graph)
    current = exported
    with quiet():
        for _ in range(_ROUNDS):
            targets = {node.target for node in current.graph.nodes if node.op == "call_function"}
            wanted = {each: known[each] for each in targets if each in known and _comes_apart(each, apart)}
            if not wanted and (_is_functional(current) or _needs_no_other(current)):
                break
            known = {each: how for each, how in known.items() if each not in wanted.keys() & DECOMPOSITIONS.keys()}
            whole = {each: _as_it_is for each in targets - wanted.keys() if _stays_whole(each)}
            current = current.run_decompositions({**whole, **wanted})
    return _as_aten(current)


def _is_functional(exported: ExportedProgram) -> bool:
    return "TRAINING" not in exported.dialect


def _needs_no_other(exported: ExportedProgram) -> bool:
    """Whether all has a converter and nothing writes: functional without another trace."""
    targets = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    writes = any(isinstance(each, torch._ops.OpOverload) and each._schema.is_mutable for each in targets)
    return not writes and not any(unknown(exported.graph))


def _as_aten(exported: ExportedProgram) -> ExportedProgram:
    """Under the name of the dialect that coremltools asks for."""
    if _is_functional(exported):
        return exported
    return ExportedProgram(
        exported.graph_module, exported.graph, exported.graph_signature, exported.state_dict,
        exported.range_constraints, exported.module_call_graph, exported.example_inputs, exported.constants,
        verifiers=[Verifier],
    )  # fmt: skip


def table(graph: fx.Graph) -> dict[Any, Any]:
    """How operators are taken apart: as decompositions.py says, as torch.export does, or as PyTorch can.

    What PyTorch cannot is taken apart where ``graph`` has it (compiler/decompose.py).

    PyTorch's references are left out: they end in primitives that nobody converts.
    """
    beyond = {
        each: how
        for each, how in torch._decomp.decomposition_table.items()
        if not inspect.unwrap(how).__module__.startswith("torch._refs")
    }
    own = own_decompositions(node.target for node in graph.nodes)
    return {**beyond, **torch.export.default_decompositions(), **own, **DECOMPOSITIONS}


def _comes_apart(target: Any, apart: set[Any]) -> bool:
    return target in apart or target in DECOMPOSITIONS or not is_known(target)


def _stays_whole(target: Any) -> bool:
    """Whether coremltools has a converter that is better than what functionalization would leave."""
    if not isinstance(target, torch._ops.OpOverload) or not is_known(target):
        return False
    return not any(argument.alias_info for argument in target._schema.arguments)  # views have to be taken apart


def _from_one_on(exported: ExportedProgram) -> None:
    """Sizes start at 1: PyTorch takes 0 and 1 for constants, and says 2 of every dynamic size."""
    for symbol, bounds in exported.range_constraints.items():
        exported.range_constraints[symbol] = ValueRanges(1, bounds.upper)


def _as_it_is(*args: Any, **kwargs: Any) -> Any:
    return NotImplemented


def _demand_known(exported: ExportedProgram) -> None:
    for node in unknown(exported.graph):
        raise LoweringError(
            f"Replace {op_name(node)} by other operators: coremltools does not convert it, "
            "and PyTorch does not take it apart",
            component="coreml", node=node.name, module=source_module(node),
        )  # fmt: skip


def unknown(graph: fx.Graph) -> Iterator[fx.Node]:
    """The calls that have no converter."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem and not is_known(node.target):
            yield node


def refuse_ranges(program: Program) -> None:
    """Raise LoweringError for activations that saturate elsewhere than their type does: that would be dropped."""
    for node in program.calls(torch.ops.quantized_decomposed.quantize_per_tensor.default):
        if tuple(node.args[3:5]) not in RANGES:
            raise LoweringError(
                f"Quantize activations to -128..127 or 0..255, not {node.args[3]}..{node.args[4]}: it would be dropped",
                component="coreml", node=node.name, module=source_module(node),
            )  # fmt: skip


def _convert(exported: ExportedProgram, flattened: Flat, target: Any, options: Options) -> Any:
    import coremltools as ct

    pipeline = ct.PassPipeline()
    pipeline.remove_passes(_LEFT_OUT | (_LEFT_OUT_IN_GROUPS if _transposes_in_groups(exported.graph) else set()))
    half = options.precision == "float16"
    if half:
        pipeline.passes = with_own_cast(pipeline.passes)
    return ct.convert(
        exported,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        outputs=[
            ct.TensorType(name=name, dtype=_numpy(dtype))
            for name, dtype in zip(flattened.outputs, flattened.output_types, strict=True)
        ],
        pass_pipeline=pipeline,
        skip_model_load=True,
        classifier_config=ct.ClassifierConfig([*options.labels]) if options.labels else None,
    )


def _transposes_in_groups(graph: fx.Graph) -> bool:
    for node in graph.nodes:
        place = _GROUPS_OF_TRANSPOSED.get(node.target)
        if place is not None and len(node.args) > place and node.args[place] != 1:
            return node.target is not aten.convolution.default or bool(node.args[6])
    return False


def _numpy(dtype: torch.dtype) -> type[Any]:
    """Of an output; what is neither is refused by a Check."""
    return {torch.float16: np.float16, torch.int32: np.int32}.get(BORDER.get(dtype, dtype), np.float32)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log lines, warnings or progress bars: coremltools speaks to its developers, planish reports the result."""
    import warnings

    with LOCK:
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            with warnings.catch_warnings(), _no_bars():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
