"""Gives every dimension of every value of a Program its type, op by op."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.coupling.dims import Dim, Frozen, freeze
from planish.compiler.coupling.equations import Equations
from planish.compiler.program import Program, arguments, op_name

Shape = tuple[Dim, ...]
Type = Shape | list[Any] | None
"""Of a value: a Shape for a tensor, a list of Types for several values, None for anything else."""
Rule = Callable[[fx.Node, "Inference"], Type]
"""What an op makes equal: asks the Inference for the Shapes of its arguments, returns the Type of its value.

A rule that raises has not understood its node: inputs and outputs are frozen then, and the groups name the op.
"""
Rules = Mapping[Any, Rule]
"""By the op, all overloads together: ``torch.ops.aten.conv2d``, or its name ``"library::op"``."""
RuleOf = Callable[[fx.Node], Rule | None]

PRIME = 1_000_003
"""Stands for a symbolic size, never the example's: 64 rows of an example would line up with 64 channels."""


class NotUnderstoodError(Exception):
    """Raised by a rule for a form of its op that it does not cover."""


@dataclass(frozen=True)
class SizeArgument:
    """An integer argument of a node that is the size of a dimension: rewritten when that is cut."""

    node: fx.Node
    name: str
    element: int | None
    """Which element, where the argument is a list."""
    dim: Dim


class Inference:
    """The dimensions of the values of ``program``, and the equations between them."""

    def __init__(self, program: Program, rule_of: RuleOf) -> None:
        self.program = program
        self.equations = Equations()
        self.types: dict[fx.Node, Type] = {}
        self.size_arguments: list[SizeArgument] = []
        self.not_understood: dict[fx.Node, str] = {}
        self._symbols: dict[Any, int] = {}
        self._sizes: dict[Any, int] = {}
        self._tensors: dict[tuple[Any, ...], Shape] = {}
        for node in program.graph.nodes:
            self.equations.node = node
            self.types[node] = self._infer(node, rule_of)
        self.equations.solve()

    # ------------------------------------------------------------------ what rules ask for

    def shape(self, argument: Any) -> Shape:
        """The dimensions of a tensor argument; none for a number."""
        found = self.types[argument] if isinstance(argument, fx.Node) else ()
        return found if isinstance(found, tuple) else ()

    def sizes(self, node: fx.Node) -> list[int]:
        """The sizes of a node's tensor; a symbolic one as a large prime."""
        value = node.meta["val"]
        if not isinstance(value, Tensor):
            raise NotUnderstoodError(f"{node.name} is no tensor")
        return [self.size(size) for size in value.shape]

    def size(self, size: int | torch.SymInt) -> int:
        if isinstance(size, int):
            return size
        if size.node not in self._sizes:
            expression = size.node.expr
            for symbol in sorted(expression.free_symbols - self._symbols.keys(), key=str):
                self._symbols[symbol] = _prime(len(self._symbols))
            self._sizes[size.node] = int(expression.xreplace(self._symbols))
        return self._sizes[size.node]

    def fresh(self, node: fx.Node) -> Shape:
        """Atoms of the sizes of a node's tensor, equal to nothing yet."""
        return tuple(Dim(size) for size in self.sizes(node))

    def unify(self, left: Dim, right: Dim) -> None:
        self.equations.unify(left, right)

    def unify_shapes(self, left: Sequence[Dim], right: Sequence[Dim]) -> None:
        for first, second in zip(left, right, strict=True):
            self.unify(first, second)

    def broadcast(self, shapes: Iterable[Sequence[Dim]]) -> Shape:
        """Right-aligned: full sizes are equal, size 1 couples nothing."""
        columns = itertools.zip_longest(*(reversed(shape) for shape in shapes))
        return tuple(reversed([self._broadcast_column([dim for dim in column if dim]) for column in columns]))

    def _broadcast_column(self, column: list[Dim]) -> Dim:
        full = [dim for dim in column if dim.size != 1] or column
        for other in full[1:]:
            self.unify(full[0], other)
        return full[0]

    def freeze(self, dims: Iterable[Dim], why: str, node: fx.Node | None) -> None:
        reason = Frozen(why, node)
        for dim in dims:
            freeze(dim, reason)

    def frozen(self, sizes: Iterable[int], why: str, node: fx.Node) -> Shape:
        """Atoms of these sizes, frozen."""
        reason = Frozen(why, node)
        return tuple(Dim(size, frozen=reason) for size in sizes)

    def is_size(self, node: fx.Node, name: str, dim: Dim, element: int | None = None) -> None:
        """Argument ``name`` of ``node`` (or its ``element``) is the size of ``dim``."""
        self.size_arguments.append(SizeArgument(node, name, element, dim))

    # ------------------------------------------------------------------ nodes

    def _infer(self, node: fx.Node, rule_of: RuleOf) -> Type:
        if node.op == "get_attr":
            return self._of_tensor(self.program.tensor(node))
        if node.op == "placeholder":
            return self._atoms_of(node.meta.get("val"), Frozen("it is an input of the model", node))
        if node.op == "output":
            for result in node.all_input_nodes:
                self._freeze_type(self.types[result], Frozen("it is an output of the model", node))
            return None
        if node.op != "call_function":
            raise AssertionError(f"no Program has a {node.op}")
        if not holds_tensor(node.meta.get("val")):
            self._freeze_read_sizes(node)
            return None
        rule = rule_of(node)
        if rule is None:
            return self._freeze_node(node, "no rule tells how this op couples dimensions")
        try:
            found = rule(node, self)
        except NotUnderstoodError as failure:
            return self._freeze_node(node, str(failure))
        except Exception as failure:  # a form of the op that its rule does not cover; the groups say so
            return self._freeze_node(node, f"{type(failure).__name__}: {failure}")
        if not self._fits(found, node.meta["val"]):
            return self._freeze_node(node, f"its rule says {found!r} for {_shapes(node.meta['val'])}")
        return found

    def _fits(self, found: Type, value: Any) -> bool:
        """Whether a rule's answer has the sizes that the value has."""
        if isinstance(value, Tensor):
            return isinstance(found, tuple) and [dim.size for dim in found] == [self.size(size) for size in value.shape]
        if isinstance(value, (list, tuple)):
            return isinstance(found, list) and all(map(self._fits, found, value))
        return True

    def _of_tensor(self, tensor: Tensor | None) -> Type:
        """Tied and twice-used tensors share their dimensions."""
        if tensor is None:
            return None
        shape = tuple(tensor.shape)
        key = (tensor.untyped_storage().data_ptr() or id(tensor), tensor.storage_offset(), shape, tensor.stride())
        if key not in self._tensors:
            self._tensors[key] = tuple(Dim(size) for size in shape)
        return self._tensors[key]

    def _freeze_read_sizes(self, node: fx.Node) -> None:
        """A size that the graph computes with stays, because nothing rewrites what is computed from it."""
        for argument in node.all_input_nodes:
            read = self.types[argument]
            if node.target is torch.ops.aten.sym_size.int and isinstance(read, tuple):
                read = (read[arguments(node)["dim"]],)
            self._freeze_type(read, Frozen("its size is read by the graph", node))

    def _atoms_of(self, value: Any, reason: Frozen) -> Type:
        if isinstance(value, Tensor):
            return tuple(Dim(self.size(size), frozen=reason) for size in value.shape)
        if isinstance(value, (list, tuple)):
            return [self._atoms_of(item, reason) for item in value]
        return None

    def _freeze_node(self, node: fx.Node, why: str) -> Type:
        self.not_understood[node] = why
        reason = Frozen(f"{op_name(node)} is not understood", node)
        for argument in node.all_input_nodes:
            self._freeze_type(self.types[argument], reason)
        return self._atoms_of(node.meta.get("val"), reason)

    def _freeze_type(self, found: Type, reason: Frozen) -> None:
        if isinstance(found, tuple):
            for dim in found:
                freeze(dim, reason)
        elif isinstance(found, list):
            for item in found:
                self._freeze_type(item, reason)


def size_of(argument: Any) -> Any:
    """The size that an argument stands for: a number, or a node that computes it."""
    return argument.meta["val"] if isinstance(argument, fx.Node) else argument


def _shapes(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else [_shapes(item) for item in value]


def holds_tensor(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(holds_tensor(item) for item in value)
    return isinstance(value, Tensor)


def _prime(index: int) -> int:
    """1000003, and the primes behind it."""
    candidate = PRIME
    for _ in range(index):
        candidate += 2
        while any(candidate % divisor == 0 for divisor in range(3, int(candidate**0.5) + 1, 2)):
            candidate += 2
    return candidate
