from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.compiler.program import Program
from planish.passes.sparsity.inputs import rows_of
from planish.passes.sparsity.layers import Layer, choose, find_layers
from planish.passes.sparsity.patterns import Blocks, NOfM
from tests.passes.nets import traced

EVERYTHING = 1 << 30
CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Calls(nn.Module):
    """One weight, and a function of input and weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def only_layer(program: Program) -> Layer:
    layers, refused = find_layers(program)
    assert not refused
    (layer,) = layers
    return layer


def multiplied(layer: Layer, program: Program, x: Tensor) -> Tensor:
    """[groups, rows, n]: the matrix of the layer times its rows of inputs."""
    use = layer.uses[0]
    weight = program.tensor(use.weight)
    assert weight is not None
    torch.testing.assert_close(layer.weight(layer.matrix(weight)), weight.detach(), rtol=0, atol=0)
    return layer.matrix(weight) @ rows_of(layer, use, x, EVERYTHING).transpose(1, 2)


@given(
    rank=st.integers(1, 3), groups=st.integers(1, 3), inputs=st.integers(1, 3), outputs=st.integers(1, 3),
    kernel=st.integers(1, 3), stride=st.integers(1, 3), dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
)  # fmt: skip
def test_the_matrix_times_the_rows_is_what_a_convolution_computes(
    rank: int, groups: int, inputs: int, outputs: int, kernel: int, stride: int, dilation: int, padding: Any
) -> None:
    stride = 1 if padding == "same" else stride
    kind: Any = CONVOLUTIONS[rank]
    conv = kind(groups * inputs, groups * outputs, kernel, stride, padding, dilation, groups, bias=False)
    x = torch.randn(2, groups * inputs, *(7, 6, 5)[:rank])
    program = traced(conv, x)
    layer = only_layer(program)
    product = multiplied(layer, program, x)
    expected = conv(x)
    found = product.unflatten(2, (2, -1)).permute(2, 0, 1, 3).reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (layer.inputs, layer.outputs, layer.groups) == (inputs, groups * outputs, groups)


@pytest.mark.parametrize(
    ("function", "shape", "inputs", "outputs"),
    [
        (F.linear, (5, 4), 4, 5),
        (torch.matmul, (4, 5), 4, 5),
        (lambda x, w: torch.addmm(x.new_zeros(5), x[0], w), (4, 5), 4, 5),
        (lambda x, w: torch.mm(x[0], w), (4, 5), 4, 5),
    ],
)
def test_the_matrix_times_the_rows_is_what_a_matrix_product_computes(
    function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], inputs: int, outputs: int
) -> None:
    model, x = Calls(function, *shape), torch.randn(3, 2, 4)
    program = traced(model, x)
    layer = only_layer(program)
    expected = model(x)
    taken = x if expected.ndim == 3 else x[0]
    found = multiplied(layer, program, taken)[0].t().reshape(expected.shape)
    torch.testing.assert_close(found, expected)
    assert (layer.inputs, layer.outputs) == (inputs, outputs)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_matrix_times_the_rows_is_each_tap_of_a_transposed_convolution(groups: int) -> None:
    conv = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups, bias=False)  # the taps do not overlap
    x = torch.randn(2, 4, 3, 3)
    program = traced(conv, x)
    layer = only_layer(program)
    taps = multiplied(layer, program, x).reshape(groups, 2, 2, 6 // groups, 2, 3, 3)
    found = taps.permute(4, 0, 3, 5, 1, 6, 2).reshape(2, 6, 6, 6)
    torch.testing.assert_close(found, conv(x), rtol=1e-4, atol=1e-5)
    assert (layer.inputs, layer.outputs) == (4 // groups, 6)


@settings(max_examples=30)
@given(at_most=st.integers(1, 200), size=st.integers(3, 12))
def test_thinned_rows_are_some_of_all_rows_and_not_many_more_than_asked_for(at_most: int, size: int) -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    x = torch.randn(3, 2, size, size)
    program = traced(conv, x)
    layer = only_layer(program)
    every = rows_of(layer, layer.uses[0], x, EVERYTHING)[0]
    some = rows_of(layer, layer.uses[0], x, at_most)[0]
    assert {*map(tuple, some.tolist())} <= {*map(tuple, every.tolist())}
    assert 1 <= len(some) <= max(2 * at_most, 3)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(16, 16), nn.Linear(16, 16)
        self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.table(x))))


def test_layers_that_share_a_weight_are_one_and_a_table_that_is_looked_up_too_stays() -> None:
    layers, refused = find_layers(traced(Tied(), torch.tensor([[1, 2], [3, 4]])))
    assert [len(layer.uses) for layer in layers] == [2]
    assert [reason for _, reason in refused] == ["its weight is also read by aten.embedding"]


def test_a_computed_weight_is_refused_and_a_product_of_activations_is_no_layer() -> None:
    model = Calls(lambda x, w: F.linear(x, w * 2) @ x.transpose(0, 1), 4, 4)
    layers, refused = find_layers(traced(model, torch.randn(3, 4)))
    assert not layers and [reason for _, reason in refused] == ["its weight is computed, not a constant"]


class Varied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)
        self.grouped, self.up = nn.Conv2d(32, 32, 3, groups=2), nn.ConvTranspose2d(32, 32, 2)
        self.odd, self.wide = nn.Conv2d(32, 20, 1), nn.Conv2d(20, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(self.odd(self.up(self.grouped(self.body(self.stem(x))))))


def test_only_shapes_that_kernels_take_are_chosen_and_each_other_layer_has_its_reason() -> None:
    layers, _ = find_layers(traced(Varied(), torch.randn(2, 3, 16, 16)))
    chosen, left = choose(layers, NOfM(2, 4), (), 1)
    reasons = {str(node.meta["nn_module_stack"].popitem()[1][0]): reason for node, reason in left}
    assert [layer.name for layer in chosen] == ["body"]
    assert reasons == {
        "stem": "its 3 input channels are no multiple of 4",
        "grouped": "no 2:4 kernel is known for convolutions with groups",
        "up": "no 2:4 kernel is known for transposed convolutions",
        "odd": "2:4 kernels take 16n input and 8n output channels; it has 32 and 20",
        "wide": "2:4 kernels take 16n input and 8n output channels; it has 20 and 64",
    }


def test_storage_patterns_ask_for_whole_groups_and_tiles_only() -> None:
    layers, _ = find_layers(traced(Varied(), torch.randn(2, 3, 16, 16)))
    assert len(choose(layers, Blocks(), (), 1)[0]) == 6
    assert [layer.name for layer in choose(layers, NOfM(4, 8), (), 1)[0]] == ["body", "grouped", "up", "odd"]
    assert [layer.name for layer in choose(layers, Blocks(16, 16), (), 1)[0]] == ["body", "grouped", "up"]


def test_layers_are_kept_dense_by_name_by_pattern_and_by_width() -> None:
    layers, _ = find_layers(traced(Varied(), torch.randn(2, 3, 16, 16)))
    assert [layer.name for layer in choose(layers, Blocks(), ("stem", "w*", "up"), 1)[0]] == ["body", "grouped", "odd"]
    assert [layer.name for layer in choose(layers, Blocks(), (), 32)[0]] == ["body", "grouped", "up"]
