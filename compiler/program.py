"""The Program: the one IR of planish.

A Program is a ``torch.fx.GraphModule`` in the training dialect of ``torch.export`` (``aten.conv2d``,
``linear``, ``batch_norm`` and ``scaled_dot_product_attention`` kept whole), the example inputs it was
traced with, and its dynamic axes. Nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from planish.compiler.inputs import Inputs

DynamicAxes = dict[str, dict[int, str]]
"""Placeholder name -> axis -> name of its size; equal names are equal sizes."""


@dataclass(frozen=True)
class ModeArgument:
    """An argument of a node that differs between training and evaluation (a dropout's ``train``)."""

    position: int
    name: str
    training: Any
    evaluation: Any

    def set(self, node: fx.Node, training: bool) -> None:
        value = self.training if training else self.evaluation
        if self.position < len(node.args):
            node.update_arg(self.position, value)
        else:
            node.update_kwarg(self.name, value)


MODE = "planish_mode"
"""Key of a node's ``meta`` that holds its ModeArgument, where it has one."""


@dataclass(frozen=True)
class Program:
    """A traced model. ``graph_module`` is called with the arguments that the model itself takes."""

    graph_module: fx.GraphModule
    example_inputs: Inputs
    dynamic_axes: DynamicAxes = field(default_factory=dict)

    def module(self) -> fx.GraphModule:
        """The callable graph, with the arguments and the output structure of the traced model."""
        return self.graph_module

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.graph_module(*args, **kwargs)

    # ------------------------------------------------------------------ nodes

    @property
    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def output(self) -> fx.Node:
        return self.graph.output_node()

    def calls(self, *targets: Callable[..., Any]) -> Iterator[fx.Node]:
        """The call_function nodes, in order; only those that call one of ``targets`` if any is given."""
        for node in self.graph.nodes:
            if node.op == "call_function" and (not targets or node.target in targets):
                yield node

    def tensor(self, node: Argument) -> Tensor | None:
        """The parameter, buffer or constant that a ``get_attr`` node reads; None for any other argument."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        value = get_attribute(self.graph_module, str(node.target))
        return value if isinstance(value, Tensor) else None

    # ------------------------------------------------------------------ tensors and modes

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by the names of the traced model: ``model.load_state_dict`` takes it."""
        return dict(self.graph_module.state_dict())

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.graph_module.parameters()

    def train(self, mode: bool = True) -> Program:
        """Set dropout (that of attention included), batch norm and recurrent layers to training, in place."""
        for node in self.calls():
            if (argument := node.meta.get(MODE)) is not None:
                argument.set(node, mode)
        self.graph_module.recompile()
        return self

    def eval(self) -> Program:
        return self.train(False)

    # ------------------------------------------------------------------ copies

    def fork(self) -> Program:
        """A Program with a graph of its own that *shares the tensors* of this one.

        What passes work on: they replace tensors and never write into them, so the original stays
        as it was and a fork costs no memory.
        """
        return self.with_graph(copied(self.graph))

    def with_graph(self, graph: fx.Graph, kind: type[fx.GraphModule] = fx.GraphModule) -> Program:
        """A Program of ``graph``, an edited copy of this one's, on the same tensors; a module of this ``kind``."""
        return Program(rebuild(self.graph_module, graph, kind), self.example_inputs, dict(self.dynamic_axes))

    def copy(self) -> Program:
        """A Program that shares nothing with this one: train it, and the original keeps its weights."""
        forked = self.fork()
        memo: dict[int, Tensor] = {}  # tied weights stay tied
        for module in forked.graph_module.modules():
            for table in (module._parameters, module._buffers):
                for name, value in table.items():
                    if value is not None:
                        table[name] = memo.setdefault(id(value), copy.deepcopy(value))  # type: ignore[assignment]
        return forked

    def save(self, path: str | Path) -> Path:
        """Write an archive that ``Program.load`` reads back; nothing in it is pickled."""
        from planish.compiler.archive import save_program

        return save_program(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Program:
        """Read an archive of ``save``. Raises UserError if it is damaged or names an unknown op."""
        from planish.compiler.archive import load_program

        return load_program(Path(path))


def copied(graph: fx.Graph) -> fx.Graph:
    """A graph with nodes of its own, and the same signature."""
    twin = fx.Graph()
    results = twin.graph_copy(graph, {}, return_output_node=True)
    assert isinstance(results, tuple)
    value, output = results
    twin.output(value).meta = copy.copy(output.meta)
    twin.set_codegen(graph._codegen)
    return twin


def rebuild(root: nn.Module, graph: fx.Graph, kind: type[fx.GraphModule] = fx.GraphModule) -> fx.GraphModule:
    """A GraphModule of ``graph`` on the tensors of ``root``; what was not in its state_dict stays out of it."""
    module = kind(root, graph)
    persistent = set(root.state_dict())
    for prefix, owner in module.named_modules():
        for name in owner._buffers:
            if (f"{prefix}.{name}" if prefix else name) not in persistent:
                owner._non_persistent_buffers_set.add(name)
    return module


# ---------------------------------------------------------------------- attributes by dotted name


def get_attribute(root: nn.Module, name: str) -> Any:
    value: Any = root
    for part in name.split("."):
        value = getattr(value, part)
    return value


def set_tensor(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Put ``tensor`` at the dotted ``name``, making the modules on the way.

    A Parameter stays one, and a buffer that was no part of the state_dict stays none.
    """
    *path, last = name.split(".")
    owner = root
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    owner._parameters.pop(last, None)
    owner._buffers.pop(last, None)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(last, tensor)
    else:
        owner.register_buffer(last, tensor, persistent=last not in owner._non_persistent_buffers_set)


def add_tensor(program: Program, name: str, tensor: Tensor) -> fx.Node:
    """A new ``get_attr`` node at the top of the graph for ``tensor``, under ``name`` or a free variant of it."""
    return add_tensors(program, {name: tensor})[0]


def add_tensors(program: Program, tensors: Mapping[str, Tensor]) -> list[fx.Node]:
    """As ``add_tensor``, for many at once, each above the one before."""
    taken = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    nodes = []
    for name, tensor in tensors.items():
        free, count = name, 0
        while free in taken:
            count += 1
            free = f"{name}_{count}"
        taken.add(free)
        set_tensor(program.graph_module, free, tensor)
        with program.graph.inserting_before(next(iter(program.graph.nodes))):
            nodes.append(program.graph.get_attr(free))
    return nodes


def replace_tensor(program: Program, node: fx.Node, values: Tensor) -> None:
    """``values`` for the tensor that ``node`` reads, under all names that it has; the old one is not written into."""
    old = program.tensor(node)
    assert old is not None
    values = values.to(old)
    new = nn.Parameter(values, old.requires_grad) if isinstance(old, nn.Parameter) else values
    for each in [each for each in program.graph.nodes if program.tensor(each) is old]:
        set_tensor(program.graph_module, str(each.target), new)


# ---------------------------------------------------------------------- where a node comes from


def source_module(node: fx.Node) -> str:
    """Dotted name of the module that made the node (``layer1.0.conv2``), "" for the model itself."""
    return _source(node)[0]


def source_type(node: fx.Node) -> str:
    """Class of the module that made the node (``torch.nn.modules.conv.Conv2d``), "" where unknown."""
    return _source(node)[1]


def _source(node: fx.Node) -> tuple[str, str]:
    stack = node.meta.get("nn_module_stack") or {}
    for path, kind in reversed(list(stack.values())):
        if isinstance(path, str) and "metadata_hook" not in path:
            name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
            return path, name
    return "", ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by the names in the operator's schema and in its order, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    values: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            values[argument.name] = node.args[index]
        else:
            values[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return values


def qualified_name(target: Any) -> str:
    """``library::op``, by which tables know operators of libraries that need not be there; or nothing."""
    return str(getattr(getattr(target, "overloadpacket", target), "_qualified_op_name", ""))


def op_name(node: fx.Node) -> str:
    """``aten.conv2d`` for the overload ``aten.conv2d.default``; the function's name otherwise."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket)
    return getattr(node.target, "__name__", str(node.target))
