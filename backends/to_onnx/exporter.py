"""Whatever traces must lower: our rules, then our rules on PyTorch's decompositions, then PyTorch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx

from planish.backends.to_onnx.emitter import Unsupported
from planish.backends.to_onnx.lower import RULES, output_leaves, rule_of, to_onnx, unsupported
from planish.compiler.complex_numbers import has_complex, real_numbers
from planish.compiler.decompose import decomposed, exported
from planish.compiler.errors import LoweringError
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.shapes import propagate, tensor_of

aten = torch.ops.aten
MATRICES_AT_MOST = 1 << 24
"""Bytes of the matrices of Fourier transforms: one of 1,024 points has 8 MiB."""
_ROUNDS = 5
"""Operators, one a round, whose rule does not know the form at hand and that are decomposed instead."""


def lower_any(program: Program, opset: int) -> tuple[ir.Model, str]:
    """The ONNX model of ``program`` and a sentence for the Report: which way it was lowered, and why.

    Raises LoweringError, with the node and module that have no rule, if none of the ways succeeds.
    """
    program = without_complex(program)
    try:
        return to_onnx(program, opset), "Every operator was lowered by its rule."
    except Unsupported as failure:
        first = failure
    try:
        model, operators = _by_decomposition(program, opset, first)
        return model, f"PyTorch decomposed {', '.join(operators)}, then every operator was lowered by its rule."
    except Unsupported as failure:
        last = failure
    try:
        return export(program, opset), f"The whole model was lowered by torch.onnx.export: {first}."
    except LoweringError as failure:
        raise LoweringError(
            f"Replace an operator that neither planish nor torch.onnx.export lowers: {last.args[0]} "
            f"(without a rule are {', '.join(sorted({op_name(node) for node in unsupported(program)})) or 'none'})",
            component="onnx", node=last.node, module=last.module,
        ) from failure  # fmt: skip


def without_complex(program: Program) -> Program:
    """Real tensors in pairs for complex ones, where rules know all of them and no transform becomes a large matrix.

    The rest is left to PyTorch's exporter, which has Fourier transforms (DFT) and complex numbers of its own.
    """
    real = real_numbers(program)
    if real is program or has_complex(real):
        return program
    before, after = (sum(tensor.nbytes for tensor in each.state_dict().values()) for each in (program, real))
    return real if after - before <= MATRICES_AT_MOST else program


def _by_decomposition(program: Program, opset: int, failure: Unsupported) -> tuple[ir.Model, list[str]]:
    kept: set[Any] = {*RULES, *(node.target for node in program.calls() if rule_of(node) is not None)}
    operators = {op_name(node) for node in unsupported(program)}
    current = program
    for _ in range(_ROUNDS):
        node = next(node for node in current.graph.nodes if node.name == failure.node)
        if current is not program and node.target not in kept:
            break  # decomposed as far as it goes, and here it is again
        operators.add(op_name(node))
        kept.discard(node.target)
        try:
            current = decomposed(program.fork().eval(), kept)
        except Exception as error:  # whatever PyTorch's export raises: the next way is tried
            raise failure from error
        try:
            return renamed(to_onnx(current, opset), program), sorted(operators)
        except Unsupported as again:
            failure = again
    raise failure


# ---------------------------------------------------------------------- PyTorch's exporter


def export(program: Program, opset: int) -> ir.Model:
    """The ONNX model of ``program`` by ``torch.onnx.export``, its inputs and outputs named as ``to_onnx`` names them.

    Raises LoweringError with the operator that the exporter does not know, its node and its module.
    """
    prepared = fold_attention(program.fork().eval())
    try:
        with quiet():
            made = torch.onnx.export(
                exported(prepared), opset_version=opset, dynamo=True, optimize=True, verbose=False, external_data=False
            )
    except Exception as failure:  # the exporter raises errors of its own, of onnxscript and of the standard library
        raise _explained(failure, program) from failure
    assert made is not None
    return renamed(made.model, program)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No prints, warnings or log lines: the exporter reports progress to people, planish reports the result."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _explained(failure: BaseException, program: Program) -> LoweringError:
    """The first operator of the Program that the chain of errors names."""
    text = ""
    cause: BaseException | None = failure
    while cause is not None:
        text += f"{cause}\n"
        cause = cause.__cause__
    for node in program.calls():
        if str(node.target) in text or f"%{node.name} " in text:
            return LoweringError(
                f"torch.onnx.export does not lower {op_name(node)}",
                component="onnx", node=node.name, module=source_module(node),
            )  # fmt: skip
    summary = next((line for line in text.splitlines() if line.strip()), type(failure).__name__)
    return LoweringError(f"torch.onnx.export fails: {summary.strip()[:200]}", component="onnx")


def fold_attention(program: Program) -> Program:
    """Attention of more than four dimensions on four: the exporter knows no other (rules_linear.attention does)."""
    nodes = [*program.calls(aten.scaled_dot_product_attention.default)]
    if nodes:
        propagate(program)
    for node in nodes:
        rank = tensor_of(node).ndim
        if rank > 4:
            _fold(program.graph, node, rank)
    program.graph_module.recompile()
    return program


def _fold(graph: fx.Graph, node: fx.Node, rank: int) -> None:
    leading = rank - 3
    with graph.inserting_before(node):
        sizes = [graph.call_function(aten.sym_size.int, (node.args[0], dim)) for dim in range(rank - 1)]

        def flat(value: Any) -> fx.Node:
            return graph.call_function(aten.flatten.using_ints, (value, 0, leading - 1))

        arguments = [flat(value) for value in node.args[:3]]
        rest = [*node.args[3:]]
        mask = rest[0] if rest else None
        if isinstance(mask, fx.Node) and tensor_of(mask).ndim > 3:
            full = graph.call_function(aten.expand.default, (mask, [*sizes[:leading], -1, -1, -1]))
            rest[0] = flat(full)
        folded = graph.call_function(node.target, (*arguments, *rest), dict(node.kwargs))  # type: ignore[arg-type]
        result = graph.call_function(aten.reshape.default, (folded, [*sizes, -1]))
    for made in (folded, result):
        made.meta = {key: value for key, value in node.meta.items() if key != "val"}
    node.replace_all_uses_with(result)
    graph.erase_node(node)


# ---------------------------------------------------------------------- names


def renamed(model: ir.Model, program: Program) -> ir.Model:
    """``model`` with inputs named like the placeholders of ``program``, outputs ``output_0`` …, axes as in it."""
    sizes: dict[str, str] = {}
    tensors = [
        node
        for node, leaf in zip(program.placeholders, program.example_inputs.leaves(), strict=True)
        if isinstance(leaf, Tensor)
    ]
    if len(tensors) != len(model.graph.inputs):
        raise LoweringError(
            f"The lowered model takes {len(model.graph.inputs)} inputs instead of {len(tensors)}", component="onnx"
        )
    _free_names(
        model, [node.name for node in tensors], [f"output_{index}" for index in range(len(output_leaves(program)))]
    )
    for node, value in zip(tensors, model.graph.inputs, strict=True):
        value.name = node.name
        for axis, name in program.dynamic_axes.get(node.name, {}).items():
            size = value.shape[axis] if value.shape is not None else None
            if isinstance(size, ir.SymbolicDim):
                sizes[str(size.value)] = name
    given = [index for index, leaf in enumerate(output_leaves(program)) if isinstance(leaf, fx.Node)]
    for index, value in zip(given, model.graph.outputs, strict=True):
        value.name = f"output_{index}"
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is not None:
            value.shape = ir.Shape([_named(size, sizes) for size in value.shape])
    return model


def _named(size: int | ir.SymbolicDim, sizes: dict[str, str]) -> int | str | None:
    return size if isinstance(size, int) else sizes.get(str(size.value))


def _free_names(model: ir.Model, *taken: Sequence[str]) -> None:
    """Move inner values out of the way of the names that inputs and outputs get."""
    reserved = {name for names in taken for name in names}
    outer = {*model.graph.inputs, *model.graph.outputs}
    for value in [*(output for node in model.graph for output in node.outputs), *model.graph.initializers.values()]:
        if value.name in reserved and value not in outer:
            value.name = f"{value.name}.inner"
