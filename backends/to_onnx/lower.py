"""Program -> ONNX model: every node by its rule."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from onnx_ir.tensor_adapters import from_torch_dtype
from torch import Tensor, fx

from planish.backends.to_onnx import (
    rules_arithmetic,
    rules_conv,
    rules_create,
    rules_elementwise,
    rules_index,
    rules_linear,
    rules_norm,
    rules_pad,
    rules_pool,
    rules_quantize,
    rules_reduce,
    rules_rnn,
    rules_shape,
)
from planish.backends.to_onnx.emitter import Emitter, Rule, Unsupported
from planish.compiler.errors import LoweringError
from planish.compiler.program import Program, op_name, qualified_name, source_module
from planish.compiler.scheme import Operator
from planish.compiler.shapes import ensure_shapes

OLDEST_OPSET = 17
"""The rules give the axes of a reduction as an input, which begins there."""

RULES: dict[Operator, Rule] = {
    **rules_arithmetic.RULES,
    **rules_elementwise.RULES,
    **rules_reduce.RULES,
    **rules_shape.RULES,
    **rules_pad.RULES,
    **rules_index.RULES,
    **rules_create.RULES,
    **rules_conv.RULES,
    **rules_linear.RULES,
    **rules_norm.RULES,
    **rules_pool.RULES,
    **rules_rnn.RULES,
    **rules_quantize.RULES,
}


def rule_of(node: fx.Node) -> Rule | None:
    target: Any = node.target
    return RULES.get(target) or rules_linear.BY_NAME.get(qualified_name(target))


def unsupported(program: Program) -> Iterator[fx.Node]:
    """The nodes whose operator has no rule."""
    for node in program.calls():
        if rule_of(node) is None and node.target is not operator.getitem:
            yield node


def to_onnx(program: Program, opset: int) -> ir.Model:
    """The ONNX model of ``program`` in evaluation mode.

    Inputs are named like the placeholders, outputs ``output_0`` …; dynamic axes keep their names. Raises
    Unsupported (a LoweringError) at the first node without a rule, or in a form that its rule does not know, and
    LoweringError for an opset that is too old.
    """
    if opset < OLDEST_OPSET:
        raise LoweringError(f"Ask for ONNX opset {OLDEST_OPSET} or later, not {opset}", component="onnx")
    program = program.fork().eval()
    program.graph.eliminate_dead_code()
    ensure_shapes(program)
    emitter = Emitter(program, opset)
    inputs: list[ir.Value] = []
    for node in program.graph.nodes:
        emitter.current = node
        if node.op == "placeholder":
            emitter.values[node] = _placeholder(program, node, inputs)
        elif node.op == "get_attr":
            tensor = program.tensor(node)
            emitter.values[node] = emitter.tensor(tensor, str(node.target)) if tensor is not None else None
        elif node.op == "call_function":
            emitter.values[node] = _call(emitter, node)
    emitter.current = None
    model = emitter.model(inputs, _outputs(emitter, program))
    if opset < 18:
        _axes_as_attributes(model)
    return _prune(model)


def _placeholder(program: Program, node: fx.Node, inputs: list[ir.Value]) -> Any:
    fake = node.meta["val"]
    if not isinstance(fake, Tensor):
        return fake  # a number that the trace has fixed
    axes = program.dynamic_axes.get(node.name, {})
    shape = [axes.get(axis, size) for axis, size in enumerate(fake.shape)]
    value = ir.Value(name=node.name, shape=ir.Shape(shape), type=ir.TensorType(from_torch_dtype(fake.dtype)))
    inputs.append(value)
    return value


def _call(emitter: Emitter, node: fx.Node) -> Any:
    both: Any = fx.map_arg((node.args, node.kwargs), lambda used: emitter.values[used])
    args, kwargs = both
    if node.target is operator.getitem:
        return args[0][args[1]]
    rule = rule_of(node)
    if rule is None:
        raise emitter.fail(f"No ONNX rule for {op_name(node)}")
    try:
        return rule(emitter, *args, **kwargs)
    except LoweringError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as failure:
        raise Unsupported(
            f"{op_name(node)} in a form that its ONNX rule does not know ({failure})",
            component="onnx", node=node.name, module=source_module(node),
        ) from failure  # fmt: skip


def _outputs(emitter: Emitter, program: Program) -> list[ir.Value]:
    """One output a tensor; each gets a node of its own where it is an input, a constant or given twice."""
    outputs: list[ir.Value] = []
    computed = {output for node in emitter.nodes for output in node.outputs}
    for index, leaf in enumerate(output_leaves(program)):
        if not isinstance(leaf, fx.Node):
            continue
        value = emitter.values[leaf]
        if isinstance(value, int):
            value = emitter.constant(value)
        if value not in computed or value in outputs:
            value = emitter.op("Identity", value)
        fake = leaf.meta["val"]
        value.name = f"output_{index}"
        value.dtype = from_torch_dtype(fake.dtype) if isinstance(fake, Tensor) else ir.DataType.INT64
        value.shape = ir.Shape(_named_sizes(fake, program) if isinstance(fake, Tensor) else [])
        outputs.append(value)
    return outputs


def output_leaves(program: Program) -> list[Any]:
    (leaves,) = program.output.args
    return [*leaves] if isinstance(leaves, (tuple, list)) else [leaves]


def _named_sizes(fake: Tensor, program: Program) -> list[int | str | None]:
    names = {
        str(node.meta["val"].shape[axis]): name
        for node in program.placeholders
        for axis, name in program.dynamic_axes.get(node.name, {}).items()
    }
    return [size if isinstance(size, int) else names.get(str(size)) for size in fake.shape]


def _prune(model: ir.Model) -> ir.Model:
    """Drop what rules have replaced (a padding that went into its convolution) and initializers nobody reads."""
    graph = model.graph
    kept = set(graph.outputs)
    for node in reversed([*graph]):
        if not any(output in kept or output.uses() for output in node.outputs):
            graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses() and value not in kept]:
        del graph.initializers[name]
    return model


def _axes_as_attributes(model: ir.Model) -> None:
    """Before opset 18 reductions (but ReduceSum) take their axes as an attribute.

    https://onnx.ai/onnx/operators/onnx__ReduceMean.html
    """
    for node in model.graph:
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.inputs) > 1:
            axes = node.inputs[1]
            if axes is not None and axes.const_value is not None:
                node.attributes["axes"] = ir.AttrInt64s("axes", axes.const_value.numpy().tolist())
            node.resize_inputs(1)
