"""Residual blocks: what stands between a value and its sum with itself, found from the graph alone.

1. A sum of two activations closes a block, if one operand is the block's input, or is made of what the other reads
   without products (a dropout, a scale, a class token beside the others): the shortcut. The other is the branch.
2. The branch multiplies (it has MACs), and nobody outside reads what it computes in between.
3. The type of the sum is that of the input, or else of the shortcut, dimension by dimension: whoever reads the one can
   read the other.
4. What alone reads the sum belongs to the block, if the input was made by the same op: the normalization or the
   activation behind a residual.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from planish.compiler.cost import Costs
from planish.compiler.coupling.groups import Coupling
from planish.compiler.coupling.inference import Type
from planish.compiler.program import source_module

aten = torch.ops.aten
_SUMS = (aten.add.Tensor, aten.add_.Tensor)
_SIDE_BY_SIDE = (aten.cat.default, aten.stack.default)


@dataclass(frozen=True)
class Block:
    """Without it, whoever reads ``result`` reads ``source``."""

    name: str
    """The module around all layers of the branch (``layer1.0``, ``blocks.3.mlp``); ``#2`` for a second one in it."""
    source: fx.Node
    result: fx.Node
    inside: frozenset[fx.Node]
    """The branch and all behind it up to ``result``, which is among them."""


def find_blocks(coupling: Coupling) -> list[Block]:
    """The blocks of the Program, in its order; one may lie inside another."""
    flow = _Flow(coupling)
    found = [block for node in coupling.program.calls(*_SUMS) if (block := _closed_by(node, flow)) is not None]
    taken: Counter[str] = Counter()
    named: list[Block] = []
    for block in found:
        taken[block.name] += 1
        count = taken[block.name]
        named.append(replace(block, name=f"{block.name}#{count}") if count > 1 else block)
    return named


class _Flow:
    """Which activations each node reads, which nodes multiply, and what types values have."""

    def __init__(self, coupling: Coupling) -> None:
        costs = Costs(coupling.program, 1)
        self.types = coupling.types
        self.multiplies = {node for node in coupling.program.calls() if costs.macs(node)}
        self.sources = {
            node: [arg for arg in node.all_input_nodes if not costs.folds(arg) and _holds_tensor(arg)]
            for node in coupling.program.graph.nodes
        }

    def same_type(self, first: fx.Node, second: fx.Node) -> bool:
        left, right = (_roots(self.types[node]) for node in (first, second))
        dtypes = {node.meta["val"].dtype for node in (first, second)}
        return left is not None and left == right and len(dtypes) == 1


def _closed_by(total: fx.Node, flow: _Flow) -> Block | None:
    operands = flow.sources[total]
    if len(operands) != 2:
        return None
    for shortcut, branch in (operands, reversed(operands)):
        before = _ancestors(branch, flow)
        carried = _carried(shortcut, before, flow)
        inside = _between(carried, before) | {total}
        multiplying = [node for node in inside if node in flow.multiplies]
        for source in (*carried[:1], shortcut) if multiplying else ():
            result = _and_what_reads(total, source, flow)
            block = Block(_around(multiplying) or total.name, source, result, frozenset(inside | {result}))
            if _is_closed(block) and flow.same_type(source, result):
                return block
    return None


def _ancestors(node: fx.Node, flow: _Flow) -> set[fx.Node]:
    """``node`` and all activations that it depends on."""
    found, waiting = {node}, [node]
    while waiting:
        for source in flow.sources[waiting.pop()]:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def _carried(node: fx.Node, before: set[fx.Node], flow: _Flow) -> list[fx.Node]:
    """The nearest of ``before`` that ``node`` is made of without MACs: of one value, or of several side by side."""
    found: dict[fx.Node, None] = {}
    seen, waiting = {node}, [node]
    while waiting:
        each = waiting.pop()
        if each in before:
            found[each] = None
        elif each not in flow.multiplies and (len(flow.sources[each]) == 1 or each.target in _SIDE_BY_SIDE):
            waiting += [source for source in flow.sources[each] if source not in seen]
            seen.update(flow.sources[each])
    return [*found]


def _between(sources: Iterable[fx.Node], before: set[fx.Node]) -> set[fx.Node]:
    """What of ``before`` (all that a branch depends on) depends on ``sources``."""
    found: set[fx.Node] = set()
    waiting = [*sources]
    while waiting:
        for user in waiting.pop().users:
            if user in before and user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _and_what_reads(total: fx.Node, source: fx.Node, flow: _Flow) -> fx.Node:
    """The one node that reads the sum, if it is made as ``source`` is; else the sum."""
    reader = next(iter(total.users)) if len(total.users) == 1 else total
    alike = reader.target == source.target and source.op == "call_function" and reader not in flow.multiplies
    return reader if alike and flow.sources[reader] == [total] and flow.same_type(source, reader) else total


def _is_closed(block: Block) -> bool:
    return all(user in block.inside for node in block.inside - {block.result} for user in node.users)


def _around(nodes: Iterable[fx.Node]) -> str:
    """The innermost module around all of them."""
    paths = [source_module(node).split(".") for node in nodes]
    common = itertools.takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in common)


def _roots(type_: Type) -> list[int] | None:
    return [id(dim.root()) for dim in type_] if isinstance(type_, tuple) else None


def _holds_tensor(node: fx.Node) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))
