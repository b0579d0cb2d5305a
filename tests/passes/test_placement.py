from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from planish.compiler.program import Program
from planish.compiler.scheme import FloatPrefix
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.placement import Placement
from tests.compiler.models import Attention
from tests.passes.nets import ADD, CAT, POOL, SCHEME, RandomCnn, aten, context, outcomes, placed, the, traced, warm

IMAGE = torch.randn(2, 3, 8, 8)


def assert_consistent(program: Program, placement: Placement) -> None:
    """What every placement fulfils, read off the rules of placement.py."""
    integers = {*placement.results, *placement.shared}
    decided = {node: outcome for node, outcome, _ in placement.decided}
    assert len(decided) == len(placement.decided), "a node was decided twice"
    for node, outcome in decided.items():
        if outcome != "int8":
            continue
        for op in (ADD, CAT, POOL):
            if node.target in op.operators:
                assert {*node.all_input_nodes} <= integers, f"{node} computes on floats"
    for (weight, reader), _ in placement.weights.items():
        assert program.tensor(weight) is not None
        assert decided[reader] == "int8"
        assert [producer for producer, user in placement.edges if user is reader or user in reader.all_input_nodes]
    for node, source in placement.shared.items():
        assert source in integers and node.args[0] is source
        assert node not in placement.results, f"{node} has a scale of its own and its input's"
    for producer, reader in placement.edges:
        assert producer in reader.all_input_nodes
        assert producer.meta["val"].dtype is torch.float32
    assert {producer for producer, _ in placement.edges} <= placement.observed() | {*placement.shared}


@settings(max_examples=20)
@given(choices=st.lists(st.integers(0, 6), min_size=1, max_size=6), fold=st.booleans())
def test_no_integer_operator_reads_a_float_in_a_random_network(choices: list[int], fold: bool) -> None:
    program = traced(warm(RandomCnn(choices)), torch.randn(2, 3, 6, 6))
    if fold:
        program = FoldBatchNorm().run(program, context())
    placement = placed(program)
    assert_consistent(program, placement)
    layers = {*program.calls(aten.conv2d.default, aten.linear.default)}
    assert {reader for _, reader in placement.weights} == layers
    named = {node for node, _, _ in placement.decided}
    assert named == {node for node in program.calls() if SCHEME.find(node.target)}, "a decision is missing"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        return (y + self.b(self.a(y).relu())).relu()


def test_a_residual_add_runs_in_integers_with_its_relu() -> None:
    program = traced(Residual(), IMAGE)
    placement = placed(program)
    add, relu = the(program, aten.add.Tensor), the(program, aten.relu.default, 2)
    assert (add, "int8", "runs in integers, with aten.relu") in placement.decided
    assert relu in placement.results and add not in placement.results
    assert {producer for producer, reader in placement.edges if reader is add} == {*add.all_input_nodes}


def test_an_add_of_a_float_stays_float() -> None:
    class Mixed(Residual):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.stem(x) + x.sin().sum(1, keepdim=True)
            return result

    program = traced(Mixed(), IMAGE)
    placement = placed(program)
    add = the(program, aten.add.Tensor)
    assert [(outcome, why) for node, outcome, why in placement.decided if node is add] == [
        ("float", "not all of its inputs are integers already")
    ]
    assert not [reader for _, reader in placement.edges if reader is add]


@pytest.mark.parametrize("function", [lambda y: y + 2, lambda y: torch.add(y, y, alpha=2)])
def test_an_add_that_is_no_sum_of_two_tensors_stays_float(function: object) -> None:
    class Adds(Residual):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.a(function(self.stem(x).relu()))  # type: ignore[operator]
            return result

    program = traced(Adds(), IMAGE)
    assert [why for node, outcome, why in placed(program).decided if node.target is aten.add.Tensor] == [
        "not the sum of two tensors"
    ]


def test_a_value_can_be_added_to_itself() -> None:
    class Twice(Residual):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return y + y

    program = traced(Twice(), IMAGE)
    placement = placed(program)
    assert_consistent(program, placement)
    assert ("int8") in [outcome for node, outcome, _ in placement.decided if node.target is aten.add.Tensor]


class Padded(nn.Module):
    def __init__(self, value: float = 0.0, mode: str = "constant") -> None:
        super().__init__()
        self.a, self.b, self.value, self.mode = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, stride=2), value, mode

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        amounts = (0, 1, 0, 1)
        padded = F.pad(y, amounts, value=self.value) if self.mode == "constant" else F.pad(y, amounts, mode=self.mode)
        result: Tensor = self.b(padded)
        return result


def test_a_zero_padding_belongs_to_its_convolution() -> None:
    program = traced(Padded(), IMAGE)
    placement = placed(program)
    pad, first = the(program, aten.pad.default), the(program, aten.conv2d.default)
    assert first in placement.results
    assert (first, pad) in placement.edges
    assert pad not in placement.results and pad not in placement.shared


@pytest.mark.parametrize(("value", "mode"), [(1.0, "constant"), (0.0, "reflect"), (0.0, "replicate")])
def test_another_padding_is_an_operator_of_its_own(value: float, mode: str) -> None:
    program = traced(Padded(value, mode), IMAGE)
    placement = placed(program)
    second = the(program, aten.conv2d.default, 1)
    before = second.args[0]
    assert before in placement.results, "what the convolution reads has no scale"
    assert before not in placement.shared
    assert_consistent(program, placement)


def test_transparent_operators_share_the_scale_of_what_they_hand_on() -> None:
    class Handed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(36, 5)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(F.max_pool2d(self.conv(x), 2).flatten(1))
            return result

    program = traced(Handed(), IMAGE)
    placement = placed(program)
    conv, pool = the(program, aten.conv2d.default), the(program, aten.max_pool2d.default)
    flat = the(program, aten.flatten.using_ints)
    assert placement.shared == {pool: conv, flat: pool}
    assert placement.observed() == {program.placeholders[0], conv}


def test_squeeze_and_excite_runs_its_convolutions_in_integers_and_its_gate_in_float() -> None:
    class Excite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            gate = self.up(self.down(F.adaptive_avg_pool2d(y, 1)).relu())
            return y * gate.sigmoid()

    program = traced(Excite(), IMAGE)
    placement = placed(program)
    assert outcomes(placement) == {"conv": "int8", "down": "int8", "up": "int8"}
    assert the(program, aten.adaptive_avg_pool2d.default) in placement.results
    assert not {*program.calls(aten.mul.Tensor, aten.sigmoid.default)} & {*placement.results, *placement.shared}


def test_a_transformer_block_runs_its_linears_in_integers_and_the_rest_in_float() -> None:
    program = traced(Attention(), torch.randn(2, 5, 8))
    placement = placed(program)
    linears = {*program.calls(aten.linear.default)}
    assert {node for node, outcome, _ in placement.decided if outcome == "int8"} == linears
    assert not placement.results, "a value is quantized for readers that compute in float"
    assert {reader for _, reader in placement.edges} == linears
    add = the(program, aten.add.Tensor)
    assert [outcome for node, outcome, _ in placement.decided if node is add] == ["float"]


PREFIX = FloatPrefix(reduction=32, channels=32, reason="float is faster")


def test_a_convolution_of_few_products_stays_float_at_the_start_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    placement = placed(traced(model, IMAGE), replace(SCHEME, prefix=PREFIX))
    assert outcomes(placement) == {"0": "float", "2": "int8", "3": "int8"}
    assert "float is faster" in placement.decided[0][2]
    assert outcomes(placed(traced(model, IMAGE))) == {"0": "int8", "2": "int8", "3": "int8"}


def test_convolutions_with_too_few_channels_stay_float() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1))
    placement = placed(traced(model, IMAGE), replace(SCHEME, min_channels=4))
    assert outcomes(placement) == {"0": "float", "1": "int8", "2": "float"}


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1))
        self.layer10, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.layer10(self.layer1(x)).mean((2, 3)))
        return result


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (("head",), {"head"}),
        (("layer1",), {"layer1.0", "layer1.1"}),
        (("layer1.*",), {"layer1.0", "layer1.1"}),
        (("layer1*",), {"layer1.0", "layer1.1", "layer10"}),
        (("layer1.0", "head"), {"layer1.0", "head"}),
        (("*",), {"layer1.0", "layer1.1", "layer10", "head"}),
    ],
)
def test_layers_are_kept_float_by_module_name_or_pattern(keep: tuple[str, ...], kept: set[str]) -> None:
    placement = placed(traced(Stages(), IMAGE), keep_float=keep)
    assert {module for module, outcome in outcomes(placement).items() if outcome == "float"} == kept
    reasons = {why for node, outcome, why in placement.decided if outcome == "float" and len(node.args) > 2}
    assert "kept float on request" in reasons


def test_a_computed_or_half_precision_weight_stays_float() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.conv2d(x, self.weight.tanh())

    placement = placed(traced(Computed(), IMAGE))
    assert [why for _, _, why in placement.decided] == ["its weight is computed, not a constant"]
    half = placed(traced(nn.Linear(3, 3).double(), torch.randn(2, 3, dtype=torch.float64)))
    assert [outcome for _, outcome, _ in half.decided] == ["float"]


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.mean(dim=None, keepdim=True) + y,
        lambda y: y.mean(1, keepdim=True) + y,
        lambda y: y.mean((-1, -2), keepdim=True) + y,
        lambda y: F.adaptive_avg_pool2d(y, 2).sum(),
        lambda y: F.adaptive_avg_pool2d(y, (None, 1)),
        lambda y: torch.cat([y, y]),
        lambda y: torch.cat([y, torch.ones_like(y)]),
    ],
    ids=["mean of all", "mean over channels", "negative axes", "to 2 pixels", "to one column", "cat", "cat with ones"],
)
def test_any_form_of_a_weightless_operator_has_a_placement(function: object) -> None:
    class Head(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return function(self.a(self.stem(x)))  # type: ignore[operator]

    program = traced(Head(), IMAGE)
    assert_consistent(program, placed(program))
