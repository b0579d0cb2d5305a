"""Several batches on their way through a graph, node by node: what is decided at a node sees all of them."""

from __future__ import annotations

from typing import Any

from torch import fx

from planish.compiler.inputs import Inputs
from planish.compiler.program import Program


class OneBatch(fx.Interpreter):
    """Where one batch is. Holds the values that are still needed."""

    def __init__(self, program: Program, inputs: Inputs) -> None:
        super().__init__(program.graph_module)
        self.args_iter = iter(inputs.leaves())

    def step(self, node: fx.Node) -> None:
        if node.op != "output":
            self.env[node] = self.run_node(node)
        for done in self.user_to_last_uses.get(node, ()):
            del self.env[done]

    def value(self, node: fx.Node) -> Any:
        """Weights are read where they are used: they may have been replaced since."""
        return self.fetch_attr(str(node.target)) if node.op == "get_attr" else self.env[node]

    def run_node(self, n: fx.Node) -> Any:
        return None if n.op == "get_attr" else super().run_node(n)

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        return fx.map_arg(args, self.value)
