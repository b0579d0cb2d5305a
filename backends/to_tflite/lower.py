"""Program -> TFLite graph: every node by its rule."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from planish.backends.to_tflite import (
    activations,
    integers,
    rules_arithmetic,
    rules_conv,
    rules_conv_others,
    rules_create,
    rules_elementwise,
    rules_index,
    rules_linear,
    rules_norm,
    rules_pool,
    rules_pool3d,
    rules_reduce,
    rules_resize,
    rules_scatter,
    rules_shape,
)
from planish.backends.to_tflite.dtypes import FILE_TYPES
from planish.backends.to_tflite.emitter import Emitter, Rule, Unsupported
from planish.backends.to_tflite.graph import PLAIN, Form, Graph
from planish.backends.to_tflite.layouts import input_orders
from planish.backends.to_tflite.tidy import without_reshapes_of_reductions
from planish.backends.to_tflite.values import Order, Stored, Value, arranged, channels_last
from planish.compiler.constants import Constants
from planish.compiler.errors import LoweringError
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.shapes import ensure_shapes

RULES: dict[Any, Rule] = {
    **rules_arithmetic.RULES,
    **rules_elementwise.RULES,
    **rules_create.RULES,
    **rules_shape.RULES,
    **rules_index.RULES,
    **rules_scatter.RULES,
    **rules_reduce.RULES,
    **rules_conv.RULES,
    **rules_conv_others.RULES,
    **rules_linear.RULES,
    **rules_norm.RULES,
    **rules_pool.RULES,
    **rules_pool3d.RULES,
    **rules_resize.RULES,
    **integers.RULES,
}
CHANNELS_LAST: frozenset[Any] = frozenset(
    {*rules_conv.RULES, *rules_conv_others.RULES, *rules_pool.RULES, *rules_pool3d.RULES, *rules_resize.RULES}
)


def unsupported(program: Program) -> Iterator[fx.Node]:
    """The nodes that are computed from the inputs and whose operator has no rule."""
    constants = Constants(program, lambda node: node.target in integers.RULES)
    for node in program.calls():
        if node not in constants and node.target not in RULES and node.target is not operator.getitem:
            yield node


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def prepared(program: Program) -> Program:
    """A fork in evaluation mode, without dead code, whose nodes know their shapes."""
    fork = program.fork().eval()
    fork.graph.eliminate_dead_code()
    ensure_shapes(fork)
    return fork


def to_tflite(program: Program, form: Form = PLAIN) -> Graph:
    """The graph of a ``prepared`` Program; all its sizes are fixed.

    Inputs are named like the placeholders, outputs ``output_0`` …. Raises Unsupported (a LoweringError) at the first
    node without a rule, or in a form that its rule does not know.
    """
    e = Emitter(program, form)
    orders = input_orders(program, CHANNELS_LAST) if form.channels_last else {}
    inputs = []
    for node in program.graph.nodes:
        e.current, e.result, e.activation = node, None, "NONE"
        if node in e.values:
            continue  # the operator ahead of it has computed it along
        if node.op == "placeholder":
            e.values[node] = _placeholder(e, node, orders.get(node))
            if isinstance(e.values[node], Value):
                inputs.append(e.values[node])
        elif node.op == "get_attr":
            e.values[node] = program.tensor(node)
        elif node.op == "call_function":
            _call(e, node)
    e.current = None
    outputs = _outputs(e, program, inputs)
    return Graph(without_reshapes_of_reductions(e.operators, outputs), inputs, outputs)


def _placeholder(e: Emitter, node: fx.Node, order: Order | None) -> Any:
    fake = node.meta["val"]
    if not isinstance(fake, Tensor):
        return fake  # a number that the trace has fixed
    if any(not isinstance(size, int) for size in fake.shape):
        raise e.fail("Give all sizes as numbers: a TFLite file holds fixed shapes")
    dtype = FILE_TYPES.get(fake.dtype)
    if dtype is None:
        raise e.fail(f"an input of {fake.dtype}")
    order = order or tuple(range(fake.ndim))
    quantization = integers.result_quantization(node, None) if e.form.integer_ends else None
    stored = Stored(
        e.unique(node.name), arranged(fake.shape, order), torch.int8 if quantization else dtype, quantization
    )
    return Value(stored, order)


def _any_value(arguments: Any) -> bool:
    return any(isinstance(value, Value) for value in pytree.tree_leaves(arguments))


def _arguments(e: Emitter, node: fx.Node) -> tuple[Any, Any]:
    both: Any = fx.map_arg((node.args, node.kwargs), lambda used: e.values[used])
    return both[0], both[1]


def _call(e: Emitter, node: fx.Node) -> None:
    args, kwargs = _arguments(e, node)
    if node.target is operator.getitem:
        e.values[node] = args[0][args[1]]
        return
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        raise e.fail(f"{op_name(node)} writes in place")
    if node.target not in RULES and _is_random(node):
        raise e.fail(f"{op_name(node)} draws random numbers: pass them as an input")
    if node.target not in integers.RULES and not _any_value((args, kwargs)):
        target: Any = node.target
        with torch.no_grad():
            e.values[node] = target(*args, **kwargs)  # its arguments depend on the inputs by their sizes alone
        return
    rule = RULES.get(node.target)
    if rule is None:
        raise e.fail(f"Replace {op_name(node)}: TFLite has nothing like it that planish could write")
    tail = _prepare(e, node, args)
    fused, ahead = activations.code(e.activation), len(e.operators)
    if node.target not in integers.MOVING and node.target not in integers.RULES and e.result is None:
        args, kwargs = _in_float(e, node, args), pytree.tree_map(e.real, kwargs)
    try:
        e.values[node] = rule(e, *args, **kwargs)
    except LoweringError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError, AssertionError) as failure:
        raise Unsupported(
            f"{op_name(node)} in a form that its TFLite rule does not know ({failure})",
            component="tflite", node=node.name, module=source_module(node),
        ) from failure  # fmt: skip
    if tail is not None:
        user, limits = tail
        computed_along = any(made.options.get("fusedActivationFunction") == fused for made in e.operators[ahead:])
        _end_at(e, node, limits, bool(fused) and computed_along)
        e.values[user] = e.values[node]


def _end_at(e: Emitter, node: fx.Node, limits: activations.Bounds, computed_along: bool) -> None:
    """Cut the result of ``node`` off at ``limits``, unless its operator or its integers have done so."""
    ends_there = e.result is not None and activations.within(limits, e.result)
    if not computed_along and not ends_there:
        e.values[node] = activations.cut(e, e.values[node], limits)


def _in_float(e: Emitter, node: fx.Node, args: Any) -> Any:
    """The arguments as floats; integer weights stay what they are: their rules arrange them first."""
    place = integers.WEIGHTS.get(node.target)
    return tuple(
        arg
        if index == place and isinstance(arg, Value) and arg.stored.data is not None
        else pytree.tree_map(e.real, arg)
        for index, arg in enumerate(args)
    )


def _prepare(e: Emitter, node: fx.Node, args: Any) -> tuple[fx.Node, activations.Bounds] | None:
    """Set what the operator computes along, and what its result is quantized with; the node that is computed along."""
    tail = activations.following(node)
    if node.target in integers.COMPUTING and integers.reads_integers(node, args):
        e.result = integers.result_quantization(node, tail[0] if tail else None)
    if tail is None:
        return None
    name = activations.NAMES.get(tail[1]) if node.target in activations.CARRIERS else None
    if name is None and e.result is None:
        return None
    unneeded = name is None or (e.result is not None and activations.within(tail[1], e.result))
    e.activation = "NONE" if unneeded else str(name)
    return tail


def _outputs(e: Emitter, program: Program, inputs: list[Value]) -> list[Value]:
    """One output a tensor; each gets an operator of its own where it is an input, a constant or given twice."""
    outputs: list[Value] = []
    sources = {value.stored for value in inputs}
    for index, leaf in enumerate(output_leaves(program)):
        if not isinstance(leaf, fx.Node):
            continue
        value = _leaving(e, e.values[leaf])
        taken = sources | {other.stored for other in outputs}
        if value.stored.data is not None or value.stored in taken:
            value = e.move("RESHAPE", value, e.numbers(value.shape), shape=value.shape, newShape=[*value.shape])
        value.stored.name = f"output_{index}"
        outputs.append(value)
    return outputs


def _leaving(e: Emitter, value: Any) -> Value:
    """An output in the order and the dtype that the file gives it in."""
    value = value if isinstance(value, Value) else e.value(torch.as_tensor(value))
    value = value if e.form.integer_ends else e.real(value)
    as_image = e.form.channels_last and value.order == channels_last(len(value.order))
    return value if as_image else e.in_order(value)


def output_leaves(program: Program) -> list[Any]:
    (leaves,) = program.output.args
    return [*leaves] if isinstance(leaves, (tuple, list)) else [leaves]
