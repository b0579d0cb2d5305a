"""``normalize`` writes sizes out and takes values apart earlier: the outputs stay the same, bit for bit."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from planish.compiler.coupling.normalize import normalize
from planish.compiler.coupling.rules import rule_finder
from planish.compiler.program import MODE, Program
from planish.compiler.rules import verify
from planish.compiler.shapes import ensure_shapes
from planish.compiler.trace import trace
from tests.compiler.coupling.nets import nets

NETS = {family.name: family for family in nets()}
REWRITTEN = (
    "attention, fused projection", "attention, parts inside heads", "attention, keys and values fused",
    "attention of the library", "LSTM of two layers and directions", "LSTM of three layers, its last state",
    "GRU, last states", "LSTM with projection", "squeezed", "chunks of unequal size", "slice from the back",
)  # fmt: skip


def traced(name: str) -> Program:
    torch.manual_seed(0)
    program = trace(NETS[name].build().eval(), NETS[name].inputs(2))
    ensure_shapes(program)
    return program


def shapes(program: Program) -> list[str]:
    """Of every value; all symbolic sizes look alike."""
    values = [node.meta["val"] for node in program.graph.nodes if node.op != "output"]
    leaves = [[leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)] for value in values]
    return [re.sub(r"s\d+", "s", str([leaf.shape for leaf in each])) for each in leaves]


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_normalized_program_computes_the_same(name: str) -> None:
    program = traced(name)
    normalized = normalize(program, rule_finder({}))
    verify(normalized, "normalize")
    for batch in (2, 3):
        inputs = NETS[name].inputs(batch)
        assert torch.equal(inputs.call(normalized), inputs.call(program))


@pytest.mark.parametrize("name", ["attention, fused projection", "attention of the library"])
def test_the_shapes_of_what_is_laid_out_in_parts_are_those_of_a_propagation(name: str) -> None:
    normalized = normalize(traced(name), rule_finder({}))
    told = shapes(normalized)
    for node in normalized.graph.nodes:
        node.meta.pop("val", None)
    ensure_shapes(normalized)
    assert told == shapes(normalized)


def test_dropout_between_layers_stays_in_training() -> None:
    normalized = normalize(traced("LSTM of three layers, its last state"), rule_finder({}))
    dropouts = [*normalized.calls(torch.ops.aten.dropout.default)]
    assert [node.args[1:] for node in dropouts] == [(0.3, False)] * 2
    assert all(MODE in node.meta for node in normalized.calls(torch.ops.aten.lstm.input))
    inputs = NETS["LSTM of three layers, its last state"].inputs(3)
    still = inputs.call(normalized.train(False))
    assert not torch.equal(inputs.call(normalized.train()), still)
    assert torch.equal(inputs.call(normalized.eval()), still)
