"""Oracle: PyTorch's own FlopCounterMode, which counts two operations a MAC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from planish.compiler.cost import by_module, node_costs, totals
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, add_tensor
from planish.compiler.trace import trace

few = settings(max_examples=12, deadline=None, derandomize=True)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(modules)

    def forward(self, *args: Tensor) -> Any:
        return self.function(*self.inner, *args)


def flops_of(model: Callable[..., Any], *args: Tensor) -> int:
    # attention as two matrix products, because the counter does not know the CPU's fused kernel
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*args)
    return int(counter.get_total_flops())


def assert_macs_agree(model: nn.Module, *args: Tensor) -> None:
    model.eval()
    program = trace(model, Inputs(args))
    assert 2 * totals(program, args[0].shape[0]).macs == flops_of(model, *args) > 0


@few
@given(st.data())
def test_macs_of_convolutions_agree_with_the_flop_counter(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    groups = data.draw(st.integers(1, 3))
    channels, features = groups * data.draw(st.integers(1, 4)), groups * data.draw(st.integers(1, 4))
    transposed = data.draw(st.booleans())
    kinds = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if transposed
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    options: dict[str, Any] = {name: data.draw(st.integers(1, 2)) for name in ("stride", "dilation")}
    if transposed and groups > 1:
        groups = 1  # the counter overlooks the groups of transposed convolutions; the next test covers them
    layer = kinds[rank - 1](channels, features, data.draw(st.integers(1, 3)), groups=groups, padding=1, **options)
    size = data.draw(st.integers(5, 8))
    assert_macs_agree(layer, torch.randn(2, channels, *[size] * rank))


@few
@given(groups=st.integers(1, 4), stride=st.integers(1, 2), size=st.integers(2, 5))
def test_a_grouped_transposed_convolution_costs_as_much_as_its_groups_apart(
    groups: int, stride: int, size: int
) -> None:
    whole = trace(
        nn.ConvTranspose2d(3 * groups, 2 * groups, 3, stride, groups=groups),
        Inputs.of(torch.randn(2, 3 * groups, size, size)),
    )
    assert 2 * totals(whole, 2).macs == groups * flops_of(
        nn.ConvTranspose2d(3, 2, 3, stride), torch.randn(2, 3, size, size)
    )


@few
@given(st.lists(st.integers(1, 4), min_size=0, max_size=3), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_macs_of_matmul_with_broadcasting_agree_with_the_flop_counter(
    batch: list[int], rows: int, inner: int, shared: bool
) -> None:
    left = torch.randn(2, *batch, rows, inner)
    right = torch.randn(*([] if shared else [1 if index % 2 else size for index, size in enumerate(batch)]), inner, 3)
    assert_macs_agree(Function(torch.matmul), left, right)


@few
@given(heads=st.integers(1, 3), queries=st.integers(1, 5), keys=st.integers(1, 5), width=st.integers(1, 4))
def test_macs_of_attention_agree_with_the_flop_counter(heads: int, queries: int, keys: int, width: int) -> None:
    query, key = torch.randn(2, heads, queries, 4), torch.randn(2, heads, keys, 4)
    assert_macs_agree(Function(F.scaled_dot_product_attention), query, key, torch.randn(2, heads, keys, width))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij,bkj->bik", [(2, 3, 4), (2, 5, 4)]),
        ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 5)]),
        ("bij,jk", [(2, 3, 4), (4, 5)]),
        ("bi,ij,jk->bk", [(2, 3), (3, 4), (4, 5)]),
    ],
)
def test_macs_of_einsum_agree_with_the_flop_counter(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [torch.randn(shape) for shape in shapes]
    with torch.backends.opt_einsum.flags(enabled=False):  # contracts from the left, as counted
        assert_macs_agree(Function(lambda *args: torch.einsum(equation, *args)), *operands)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (torch.mm, [(2, 3), (3, 4)]),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)]),
        (torch.addmm, [(2, 4), (2, 3), (3, 4)]),
        (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
        (F.linear, [(2, 3), (4, 3), (4,)]),
    ],
)
def test_macs_of_matrix_products_agree_with_the_flop_counter(
    function: Callable[..., Any], shapes: list[tuple[int, ...]]
) -> None:
    assert_macs_agree(Function(function), *[torch.randn(shape) for shape in shapes])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_recurrent_layers_multiply_each_weight_matrix_once_for_each_row_of_each_time_step(
    kind: Any, options: Any
) -> None:
    layer = kind(3, 4, batch_first=True, **options).eval()
    rows = 2 * 5
    expected = rows * sum(weight.numel() for name, weight in layer.named_parameters() if "weight" in name)
    program = trace(Function(lambda inner, x: inner(x)[0], layer), Inputs.of(torch.randn(2, 5, 3)))
    assert totals(program, 2).macs == expected


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.table(ids))
        return result


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        result: Tensor = self.head((self.second(y) + y).relu().mean((2, 3)))
        return result


def test_a_cnn_costs_what_the_flop_counter_and_its_parameters_say() -> None:
    model = Residual().eval()
    assert_macs_agree(model, torch.randn(2, 3, 8, 8))
    found = totals(trace(model, Inputs.of(torch.randn(2, 3, 8, 8))))
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    buffers = [value for name, value in model.named_buffers() if "running" in name]
    assert found.parameter_bytes == sum(value.nbytes for value in [*model.parameters(), *buffers])


def test_a_transformer_layer_costs_what_the_flop_counter_says() -> None:
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer is one op to the flop counter
    try:
        assert_macs_agree(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@few
@given(batch=st.integers(1, 9))
def test_macs_and_activations_grow_with_a_dynamic_batch_and_parameters_do_not(batch: int) -> None:
    program = trace(Residual().eval(), Inputs.of(torch.randn(3, 3, 8, 8)))
    one, many = totals(program, 1), totals(program, batch)
    assert (many.macs, many.activation_bytes) == (batch * one.macs, batch * one.activation_bytes)
    assert (many.parameters, many.parameter_bytes) == (one.parameters, one.parameter_bytes)


def test_a_size_that_is_no_multiple_of_the_batch_is_computed_and_not_scaled() -> None:
    model = Function(lambda layer, x: layer(torch.cat([x, x.new_zeros(1, 4)])), nn.Linear(4, 4))
    program = trace(model, Inputs.of(torch.randn(2, 4)))
    assert [totals(program, batch).macs for batch in (1, 5)] == [2 * 16, 6 * 16]


def test_a_fixed_batch_costs_what_it_costs_at_that_batch() -> None:
    program = trace(Function(lambda layer, x: layer(x.reshape(3, 4)), nn.Linear(4, 4)), Inputs.of(torch.randn(3, 4)))
    assert program.dynamic_axes == {}
    assert totals(program, 8).macs == 3 * 16


def test_a_tied_tensor_counts_once() -> None:
    program = trace(Tied().eval(), Inputs.of(torch.zeros(2, 3, dtype=torch.int64)))
    assert totals(program).parameters == 40
    assert totals(program).macs == 3 * 40
    assert [cost.parameters for cost in node_costs(program) if cost.parameters] == [40]


def test_costs_are_told_by_source_module() -> None:
    program = trace(Residual().eval(), Inputs.of(torch.randn(2, 3, 8, 8)))
    table = by_module(program, 2)
    assert table["first.0"].macs == 2 * 8 * 8 * 8 * 27
    assert table["second.0"].parameters == 8 * 2 * 9 + 8
    assert sum(row.macs for row in table.values()) == totals(program, 2).macs
    assert [module for module in table if module][:3] == ["first.0", "first.1", "first.2"]


def test_what_is_computed_from_constants_alone_costs_nothing_and_its_reader_owns_the_tensors() -> None:
    class Standardized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))
            self.mix = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, (self.weight @ self.mix) / 2)

    program = trace(Standardized().eval(), Inputs.of(torch.randn(2, 3)))
    costly = [cost for cost in node_costs(program) if cost.macs]
    assert [(cost.op, cost.macs, cost.parameters) for cost in costly] == [("aten.linear", 12, 21)]


def quantized_linear(features: int = 64) -> Program:
    """A linear layer between Q/DQ nodes, with an int8 weight: what the INT8 pass makes."""
    import torch.ao.quantization.fx._decomposed  # registers the operators

    ops = torch.ops.quantized_decomposed
    program = trace(nn.Linear(features, features).eval(), Inputs.of(torch.randn(2, features)))
    (layer,) = program.calls(torch.ops.aten.linear.default)
    weight = add_tensor(program, "weight_int8", torch.ones(features, features, dtype=torch.int8))
    scale = add_tensor(program, "scale", torch.ones(features))
    zero = add_tensor(program, "zero", torch.zeros(features, dtype=torch.int64))
    grid = (0.1, 0, -128, 127, torch.int8)
    graph = program.graph
    with graph.inserting_before(layer):
        dequantized = graph.call_function(
            ops.dequantize_per_channel.default, (weight, scale, zero, 0, -127, 127, torch.int8)
        )
        incoming = graph.call_function(ops.quantize_per_tensor.default, (layer.args[0], *grid))
        layer.update_arg(0, graph.call_function(ops.dequantize_per_tensor.default, (incoming, *grid)))
    layer.update_arg(1, dequantized)
    with graph.inserting_after(layer):
        outgoing = graph.call_function(ops.quantize_per_tensor.default, (layer, *grid))
    with graph.inserting_after(outgoing):
        result = graph.call_function(ops.dequantize_per_tensor.default, (outgoing, *grid))
    layer.replace_all_uses_with(result, delete_user_cb=lambda user: user is not outgoing)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def test_quantized_weights_count_once_and_belong_to_the_layer() -> None:
    costs = {cost.op: cost for cost in node_costs(quantized_linear(64))}
    layer = costs["aten.linear"]
    assert (layer.macs, layer.parameters) == (64 * 64, 64 * 64 + 64)
    assert layer.parameter_bytes == 64 * 64 + 64 * 4 + 64 * (4 + 8)  # int8 weight, float bias, scales and zero points
    assert costs["quantized_decomposed.dequantize_per_channel"].parameters == 0
