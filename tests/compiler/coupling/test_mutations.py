"""The oracle is not empty: with a rule that is wrong, it says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from planish.compiler.coupling import normalize
from planish.compiler.coupling.dims import Dim, concatenation, product
from planish.compiler.coupling.groups import couple
from planish.compiler.coupling.inference import Inference, Rule, Shape
from planish.compiler.program import arguments
from planish.compiler.trace import trace
from tests.backends.to_onnx.families import Family
from tests.compiler.coupling.nets import nets
from tests.compiler.coupling.oracle import enliven, judge, some_of_all

aten = torch.ops.aten
NETS = {family.name: family for family in nets()}


def cat_backwards(node: fx.Node, inference: Inference) -> Shape:
    shapes = [inference.shape(tensor) for tensor in arguments(node)["tensors"]]
    axis = arguments(node)["dim"] % len(shapes[0])
    return (*shapes[0][:axis], concatenation(shape[axis] for shape in shapes[::-1]), *shapes[0][axis + 1 :])


def split_backwards(node: fx.Node, inference: Inference) -> list[Shape]:
    given, x = arguments(node), inference.shape(node.args[0])
    parts = [Dim(size) for size in given["split_sizes"]]
    inference.unify(x[-1], concatenation(parts[::-1]))
    for index, part in enumerate(parts):
        inference.is_size(node, "split_sizes", part, index)
    return [(*x[:-1], part) for part in parts]


def column_major(node: fx.Node, inference: Inference) -> Shape:
    """A reshape whose products run the wrong way round, but for the batch in front."""
    (batch, *x), (_, *result) = inference.shape(node.args[0]), inference.fresh(node)
    inference.unify(product(x[::-1]), product(result[::-1]))
    for index, (size, dim) in enumerate(zip(arguments(node)["shape"], (batch, *result), strict=True)):
        if size != -1 and index:
            inference.is_size(node, "shape", dim, index)
    return (batch, *result)


def untied(node: fx.Node, inference: Inference) -> Shape:
    """A norm whose parameters have nothing to do with its channels."""
    return inference.shape(node.args[0])


def groups_alone(node: fx.Node, inference: Inference) -> Shape:
    """A grouped convolution that takes its channels for (channels of a group) x groups."""
    given = arguments(node)
    x, weight = inference.shape(given["input"]), inference.shape(given["weight"])
    groups = Dim(given["groups"])
    inference.is_size(node, "groups", groups)
    inference.unify(x[1], product([weight[1], groups]))
    inference.unify(weight[0], product([Dim(weight[0].size // groups.size), groups]))
    inference.unify(inference.shape(given["bias"])[0], weight[0])
    inference.freeze([*x[2:], *weight[2:]], "it is a position", node)
    return (x[0], weight[0], *inference.frozen(inference.sizes(node)[2:], "it is a position", node))


def squares_outermost(node: fx.Node, inference: Inference) -> Shape:
    """A pixel shuffle that takes its channels for r² x C."""
    x = inference.shape(node.args[0])
    square = inference.frozen([arguments(node)["upscale_factor"] ** 2], "it becomes positions", node)
    channels = Dim(x[1].size // square[0].size)
    inference.unify(x[1], product([*square, channels]))
    return (x[0], channels, *inference.frozen(inference.sizes(node)[2:], "it is a position", node))


def as_a_whole(node: fx.Node, inference: Inference) -> Shape:
    """repeat_interleave taken for repeat."""
    x = inference.shape(node.args[0])
    times = Dim(arguments(node)["repeats"])
    inference.is_size(node, "repeats", times)
    return (*x[:-1], product([times, x[-1]]))


def any_halves(node: fx.Node, inference: Inference) -> Shape:
    """A gated unit whose halves need not be alike."""
    x = inference.shape(node.args[0])
    half = Dim(x[-1].size // 2)
    inference.unify(x[-1], concatenation([half, Dim(half.size)]))
    return (*x[:-1], half)


def keys_apart(node: fx.Node, inference: Inference) -> Shape:
    """Attention whose queries need not be as wide as its keys."""
    query, key, value = (inference.shape(argument) for argument in node.args[:3])
    inference.freeze([key[-2], query[-2]], "attention is spread over it", node)
    batch = inference.broadcast([query[:-2], key[:-2], value[:-2]])
    return (*batch, query[-2], value[-1])


WRONG: dict[str, tuple[str, Mapping[Any, Rule]]] = {
    "concatenation in the wrong order": ("cat", {aten.cat: cat_backwards}),
    "chunks in the wrong order": ("chunks of unequal size", {aten.split_with_sizes: split_backwards}),
    "column-major products": ("axes permuted", {aten.reshape: column_major}),
    "untied batch norm": ("batch norm", {aten.batch_norm: untied}),
    "untied layer norm": ("layer norm", {aten.layer_norm: untied}),
    "group norm without its groups": ("group norm", {aten.group_norm: untied}),
    "groups innermost": ("grouped convolution", {aten.conv2d: groups_alone}),
    "pixels outermost": ("pixel shuffle", {aten.pixel_shuffle: squares_outermost}),
    "repeated as a whole": ("each repeated", {aten.repeat_interleave: as_a_whole}),
    "halves apart": ("gated halves", {aten.glu: any_halves}),
    "queries and keys apart": ("attention, grouped queries", {aten.scaled_dot_product_attention: keys_apart}),
}


def finds_a_fault(family: Family, rules: Mapping[Any, Rule]) -> bool:
    torch.manual_seed(0)
    coupling = couple(trace(enliven(family.build()).eval(), family.inputs(2)), rules)
    assert coupling.groups
    for seed in range(5):
        try:
            verdict = judge(coupling, some_of_all(coupling, np.random.default_rng(seed)), family.inputs(2))
        except (RuntimeError, IndexError, ValueError):  # it does not even run
            return True
        if verdict.error > 1e-6:
            return True
    return False


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_found_out(name: str) -> None:
    net, rules = WRONG[name]
    assert not finds_a_fault(NETS[net], {})
    assert finds_a_fault(NETS[net], rules)


def test_a_scale_that_follows_the_width_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net = NETS["attention, fused projection"]
    kept = {op: rewrite for op, rewrite in normalize._REWRITES.items() if op != aten.scaled_dot_product_attention}
    monkeypatch.setattr(normalize, "_REWRITES", kept)
    assert finds_a_fault(net, {})
