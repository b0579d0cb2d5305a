"""Lets channels that reach an output take another order, by putting them back behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from planish.compiler.coupling.dims import Dim, atoms
from planish.compiler.coupling.groups import couple
from planish.compiler.coupling.inference import Rules
from planish.compiler.program import Program, add_tensor
from planish.compiler.shapes import ensure_shapes, tensor_of
from planish.passes.sparsity.layers import Layer

aten = torch.ops.aten
WIDEST = 1 << 13
"""Channels of an output that are let go: the matrix that stands for their order has the square of that."""
MARK = "planish_output_order"
"""Key of the ``meta`` of a product that puts channels back."""


def unlocked(program: Program, layers: Sequence[Layer], rules: Rules | None = None) -> Program:
    """A fork in which outputs are multiplied by an identity matrix, along each axis that ``layers`` sum over too.

    To the coupling analysis the rows of that matrix are one more place where the channels lie, and its columns are
    what has to stay. Reordered, it is the matrix that puts the channels back.
    """
    axes = [*_axes(program, layers, rules)]
    program = program.fork()
    nodes = {node.name: node for node in program.graph.nodes}
    for name, axis in axes:
        value = nodes[name]
        tensor = tensor_of(value)
        identity = add_tensor(program, "output_order", torch.eye(int(tensor.shape[axis]), dtype=tensor.dtype))
        with program.graph.inserting_before(program.output):
            turned = program.graph.call_function(aten.transpose.int, (value, axis, -1))
            product = program.graph.call_function(aten.matmul.default, (turned, identity))
            product.meta[MARK] = True
            back = program.graph.call_function(aten.transpose.int, (product, axis, -1))
        program.output.replace_input_with(value, back)
        nodes[name] = back
        ensure_shapes(program)
    program.graph_module.recompile()
    return program


def _axes(program: Program, layers: Sequence[Layer], rules: Rules | None) -> Iterator[tuple[str, int]]:
    """(output, axis) for axes with an atom that some layer sums over."""
    coupling = couple(program, rules)
    summed: set[Dim] = set()
    for layer in layers:
        shape = coupling.tensors[str(layer.uses[0].weight.target)]
        summed.update(atoms(shape[layer.input_axis]))
    for node in dict.fromkeys(coupling.program.output.all_input_nodes):
        found = coupling.types[node]
        value = node.meta["val"]
        if isinstance(found, tuple) and value.is_floating_point():
            for axis, dim in enumerate(found):
                fits = isinstance(value.shape[axis], int) and value.shape[axis] <= WIDEST
                if fits and not summed.isdisjoint(atoms(dim)):
                    yield node.name, axis


def restored(program: Program) -> Program:
    """``program`` with every such matrix as the ``index_select`` that it is, or without it if it changes nothing."""
    for product in [*program.calls(aten.matmul.default)]:
        if MARK in product.meta:
            _replace(program, product)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _replace(program: Program, product: fx.Node) -> None:
    (back,) = product.users
    turned, matrix = product.args
    assert isinstance(turned, fx.Node) and isinstance(matrix, fx.Node)
    value, axis, _ = turned.args
    assert isinstance(value, fx.Node)
    held = program.tensor(matrix)
    assert held is not None
    index = held.argmax(0)
    source = value
    if not torch.equal(index, torch.arange(len(index))):
        order = add_tensor(program, "output_order_index", index)
        order.meta["val"] = tensor_of(matrix).new_empty((len(index),), dtype=torch.int64)
        with program.graph.inserting_before(back):
            source = program.graph.call_function(aten.index_select.default, (value, axis, order))
        source.meta = {**back.meta}
    back.replace_all_uses_with(source)
