from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from planish.backends.to_tensorrt.scheme import scheme_for
from planish.compiler.program import source_module
from planish.compiler.scheme import QuantizationScheme
from planish.compiler.targets import find_profile
from planish.passes.placement import Placement
from tests.passes.nets import placed, traced

aten = torch.ops.aten
IMAGE = torch.randn(2, 16, 8, 8)
Net = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    def __init__(self, forward: Net) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.few, self.linear = nn.Conv2d(16, 8, 1), nn.Linear(8, 8)
        self.net = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self, x)


def scheme() -> QuantizationScheme:
    found = scheme_for(find_profile("jetson-orin"))
    assert found is not None
    return found


def placement(net: Net) -> Placement:
    return placed(traced(Layers(net), IMAGE), scheme())


def shortcuts(found: Placement) -> list[str]:
    """Where the quantized operand of each sum comes from: its module, or its name."""
    sums = [(source, reader) for source, reader in found.edges if "add" in str(reader.target)]
    return [_module(source) for source, _ in sums]


def _module(node: fx.Node) -> str:
    return source_module(node) or node.name


def test_activations_and_weights_are_symmetric_and_weights_scaled_per_output_channel() -> None:
    found = scheme()
    assert found.activation.symmetric and found.activation.dtype is torch.int8
    assert found.weight.symmetric and found.weight.granularity == "channel"
    axes = {operator: op.weight_axis for op in found.ops for operator in op.operators}
    assert axes[aten.conv2d.default] == axes[aten.linear.default] == 0
    assert axes[aten.mm.default] == axes[aten.addmm.default] == 1  # [in, out]


def test_inputs_are_quantized_and_outputs_are_not() -> None:
    found = placement(lambda m, x: m.b(m.a(x).relu()))
    assert not found.results and len(found.edges) == 2 and len(found.weights) == 2


def test_the_identity_shortcut_of_a_residual_sum_is_quantized() -> None:
    assert shortcuts(placement(lambda m, x: m.a(x) + m.c(m.b(m.a(x)).relu()))) == ["a"]


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_branches_the_shallower_one_is_the_shortcut_whatever_their_order(turned: bool) -> None:
    def net(m: Layers, x: Tensor) -> Tensor:
        deep, shallow = m.b(m.a(x).relu()), m.c(x)
        return shallow + deep if turned else deep + shallow

    assert shortcuts(placement(net)) == ["c"]


def test_a_sum_without_a_convolution_that_it_could_run_with_stays_as_it_is() -> None:
    assert shortcuts(placement(lambda m, x: m.a(x).relu() + x)) == []  # the relu stands between
    assert shortcuts(placement(lambda m, x: m.a((y := m.b(x)) + y))) == []  # the sum of a value with itself
    assert shortcuts(placement(lambda m, x: torch.add(m.a(x), x, alpha=2))) == []
    assert shortcuts(placement(lambda m, x: m.a(x) + x.mean((2, 3), keepdim=True))) == []  # broadcast


def test_a_convolution_that_others_read_too_absorbs_no_sum() -> None:
    def net(m: Layers, x: Tensor) -> Tensor:
        y = m.a(x)
        return torch.cat([y + x, y], 1)

    assert shortcuts(placement(net)) == []


def test_a_sum_behind_a_convolution_that_stays_float_is_float() -> None:
    found = placement(lambda m, x: m.few(x) + x[:, :8])
    assert shortcuts(found) == [] and not found.weights


def test_the_residual_of_a_linear_layer_stays_float() -> None:
    found = placement(lambda m, x: (y := x.mean((2, 3))[:, :8]) + m.linear(y))
    assert shortcuts(found) == [] and len(found.weights) == 1


def test_a_device_without_int8_has_no_scheme() -> None:
    profile = find_profile("jetson-orin")
    assert scheme_for(profile.model_copy(update={"quantization": None})) is None


def test_matrix_products_with_constant_weights_are_quantized_whatever_they_are_called() -> None:
    weight, bias = torch.randn(8, 8), torch.randn(8)
    found = placement(lambda m, x: torch.addmm(bias, torch.mm(x.mean((2, 3))[:, :8], weight), weight))
    assert [axis for _, axis in found.weights.values()] == [1, 1]
