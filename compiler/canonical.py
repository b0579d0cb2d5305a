"""The rules by which a traced graph becomes a Program's: numbered, each with its reason.

Those about writes in place stand in functional.py.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from planish.compiler.functional import use_functional_ops
from planish.compiler.program import MODE, ModeArgument, Program, arguments
from planish.compiler.shapes import tensor_of

aten = torch.ops.aten


def canonicalize(program: Program, attention_dropouts: tuple[float, ...]) -> None:
    """Apply all rules in place. ``attention_dropouts``: those of training, one an attention, where they are known."""
    _inline_regions(program)
    _use_reshape(program)
    _use_products(program)
    use_functional_ops(program)
    _drop_assertions(program)
    _record_modes(program, attention_dropouts)
    program.graph.lint()
    program.graph_module.recompile()


def attentions(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is aten.scaled_dot_product_attention.default]


def dropout_of(attention: fx.Node) -> float:
    probability: Any = attention.args[4] if len(attention.args) > 4 else attention.kwargs.get("dropout_p", 0.0)
    return float(probability)


_REGIONS = (torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast)


def _inline_regions(program: Program) -> None:
    """1. ``torch.no_grad`` and ``autocast`` regions become plain nodes (autocast is off on the way in)."""
    for node in [*program.calls(*_REGIONS)]:
        start = next(i for i, arg in enumerate(node.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
        attribute = node.args[start]
        assert isinstance(attribute, fx.Node)
        region = getattr(program.graph_module, str(attribute.target))
        operands = iter(node.args[start + 1 :])
        values: dict[fx.Node, Any] = {}
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(operands)
        with program.graph.inserting_before(node):
            results = program.graph.graph_copy(region.graph, values)
        for user in [*node.users]:
            if user.target is operator.getitem:
                assert isinstance(results, (tuple, list))
                user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
                program.graph.erase_node(user)
        program.graph.erase_node(node)
        if not attribute.users:
            program.graph.erase_node(attribute)


def _use_reshape(program: Program) -> None:
    """2. ``view`` becomes ``reshape``: a view is recorded where the traced kernel happened to give such strides."""
    for node in program.calls(aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default


def _use_products(program: Program) -> None:
    """3. A linear map by a vector becomes a product: the weight of a layer is a matrix everywhere else."""
    for node in [*program.calls(aten.linear.default)]:
        x, weight, bias = arguments(node).values()
        if tensor_of(node).ndim == tensor_of(x).ndim:
            continue
        with program.graph.inserting_before(node):
            product = program.graph.call_function(aten.matmul.default, (x, weight))
        product.meta = dict(node.meta)
        if bias is None:
            node.replace_all_uses_with(product)
            program.graph.erase_node(node)
        else:
            node.target, node.args = aten.add.Tensor, (product, bias)


def _drop_assertions(program: Program) -> None:
    """4. Runtime assertions of the export go: planish checks inputs and shapes itself."""
    for node in [*program.calls(aten._assert_tensor_metadata.default, aten._assert_scalar.default)]:
        program.graph.erase_node(node)


# ---------------------------------------------------------------------- training and evaluation


_MODE_ARGUMENTS = {
    aten.dropout.default: (2, "train"),
    aten.feature_dropout.default: (2, "train"),
    aten.alpha_dropout.default: (2, "train"),
    aten.feature_alpha_dropout.default: (2, "train"),
    aten.batch_norm.default: (5, "training"),
    aten.rrelu.default: (3, "training"),
    aten.lstm.input: (6, "train"),
    aten.gru.input: (6, "train"),
    aten.rnn_tanh.input: (6, "train"),
    aten.rnn_relu.input: (6, "train"),
}


def _record_modes(program: Program, dropouts: tuple[float, ...]) -> None:
    """5. Each node that behaves differently in training remembers how, so that the mode can be set right."""
    for node in program.calls(*_MODE_ARGUMENTS):
        position, name = _MODE_ARGUMENTS[node.target]  # type: ignore[index]
        # a batch norm without running statistics uses those of the batch in evaluation too
        always = node.target is aten.batch_norm.default and node.args[3] is None
        node.meta[MODE] = ModeArgument(position, name, training=True, evaluation=always)
    for index, node in enumerate(attentions(program.graph)):
        own = dropout_of(node)
        training = dropouts[index] if index < len(dropouts) else own
        if training:
            node.meta[MODE] = ModeArgument(4, "dropout_p", training=training, evaluation=0.0)
