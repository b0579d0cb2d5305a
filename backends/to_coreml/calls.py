"""New calls in an fx graph, that belong to the module of an old one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from planish.compiler.program import Program, add_tensor, arguments


class Calls:
    """New calls in ``program``, that come from the same module as ``node``."""

    def __init__(self, program: Program, node: fx.Node) -> None:
        self.program, self.node = program, node
        self.stack = node.meta.get("nn_module_stack")

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        made = self.program.graph.call_function(target, args, kwargs)
        if self.stack is not None:
            made.meta["nn_module_stack"] = self.stack
        return made

    def constant(self, tensor: Tensor) -> fx.Node:
        return add_tensor(self.program, f"{self.node.name}_constant", tensor)

    def like(self, node: fx.Node, /, **changed: Any) -> fx.Node:
        """The operator of ``node`` with the same arguments but for those that are given by name."""
        values = {**arguments(node), **changed}
        assert isinstance(node.target, torch._ops.OpOverload), f"{node.name} calls no operator"
        named = {each.name for each in node.target._schema.arguments if each.kwarg_only}
        return self(
            node.target,
            *(value for name, value in values.items() if name not in named),
            **{name: value for name, value in values.items() if name in named and name in node.kwargs},
        )
