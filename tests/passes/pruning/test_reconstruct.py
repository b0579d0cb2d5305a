"""Weights fitted after a cut: exact where what is left determines what is gone, never worse on rows held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.calibration import GIVEN, Calibration
from planish.compiler.contracts import Context
from planish.compiler.coupling.cut import cut, left_of_tensors
from planish.compiler.coupling.groups import Coupling, Group, couple
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.compiler.trace import trace
from planish.passes.prune_channels import PruneChannels
from planish.passes.pruning.reconstruct import Fitted, reconstruct
from tests.backends.to_onnx.families import Family
from tests.backends.to_onnx.family_base import Function
from tests.compiler.coupling.nets import nets
from tests.passes.nets import profile, traced

SMALL = 1e-3


def coupled(model: nn.Module, x: Tensor) -> Coupling:
    coupling = couple(traced(model.eval(), x))
    coupling.program.eval()
    return coupling


def after(coupling: Coupling, removed: dict[Group, list[int]], batches: Iterable[Tensor]) -> tuple[Program, Program]:
    """The Program after the cut alone, and with its weights fitted."""
    alone, fitted = cut(coupling, removed), cut(coupling, removed)
    reconstruct(fitted, coupling.program, left_of_tensors(coupling, removed), [Inputs((x,)) for x in batches])
    verify(fitted, "reconstructing")
    return alone, fitted


def error(program: Program, whole: Program, x: Tensor) -> float:
    wanted = whole(x)
    return float((program(x) - wanted).square().mean() / wanted.square().mean())


class Twins(nn.Module):
    """Each of the last four channels of ``first`` is 2 times one of the first four, plus a constant."""

    def __init__(self, last: nn.Module, first: nn.Conv1d | nn.Linear) -> None:
        super().__init__()
        self.first, self.last = first, last
        with torch.no_grad():
            first.weight[4:] = 2 * first.weight[:4]
            assert first.bias is not None
            first.bias[4:] = 2 * first.bias[:4] + torch.arange(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.first(x))
        return result


LASTS = {
    "linear": lambda: Twins(nn.Linear(8, 5), nn.Linear(6, 8)),
    "convolution": lambda: Twins(nn.Conv1d(8, 5, 3), nn.Conv1d(6, 8, 1)),
    "strided, dilated": lambda: Twins(nn.Conv1d(8, 5, 3, stride=2, dilation=2), nn.Conv1d(6, 8, 1)),
}


@pytest.mark.parametrize("name", LASTS)
def test_what_is_gone_comes_back_where_the_rest_determines_it(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6) if name == "linear" else torch.randn(64, 6, 12)
    coupling = coupled(LASTS[name](), x[:2])
    (group,) = coupling.groups
    alone, fitted = after(coupling, {group: [4, 5, 6, 7]}, x.split(8))
    assert error(alone, coupling.program, x) > 0.1
    assert error(fitted, coupling.program, torch.randn_like(x)) < SMALL


def test_a_transposed_convolution_that_loses_inputs_and_outputs_is_fitted_as_well() -> None:
    torch.manual_seed(0)
    twins = Twins(nn.ConvTranspose1d(8, 6, 3, stride=2, bias=False), nn.Conv1d(6, 8, 1))
    last = nn.Conv1d(6, 2, 1)
    with torch.no_grad():
        twins.first.bias.zero_()  # type: ignore[union-attr]  # a constant would need a bias
        last.weight[:, 3:] = 0  # the outputs that go are not missed
    x = torch.randn(64, 6, 9)
    coupling = coupled(nn.Sequential(twins, last), x[:2])
    inner, outer = sorted(coupling.groups, key=lambda group: -group.width)
    alone, fitted = after(coupling, {inner: [4, 5, 6, 7], outer: [3, 4, 5]}, x.split(8))
    assert error(alone, coupling.program, x) > 0.1
    assert error(fitted, coupling.program, x) < SMALL


@pytest.mark.parametrize("family", nets(), ids=lambda family: family.name)
def test_on_rows_that_are_held_out_no_layer_of_any_net_gets_worse(family: Family) -> None:
    torch.manual_seed(0)
    program = trace(family.build().eval(), family.inputs(2))
    coupling = couple(program)
    coupling.program.eval()
    removed = {group: [*range(0, group.width - 1, 2)] for group in coupling.groups if group.width > 1}
    before = {name: tensor.clone() for name, tensor in coupling.program.state_dict().items()}
    fitted = cut(coupling, removed)
    batches = []
    for seed in range(5):
        torch.manual_seed(seed)
        batches.append(family.inputs(3 if program.dynamic_axes else 2))
    found: list[Fitted] = reconstruct(fitted, coupling.program, left_of_tensors(coupling, removed), batches)
    assert all(each.after <= each.before for each in found)
    verify(fitted, "reconstructing")
    for name, tensor in coupling.program.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_dtypes_are_fitted_and_keep_them(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6, dtype=dtype)
    coupling = coupled(LASTS["linear"]().to(dtype), x[:2])
    (group,) = coupling.groups
    alone, fitted = after(coupling, {group: [4, 5, 6, 7]}, x.split(8))
    assert error(fitted, coupling.program, x) < 10 * SMALL < 0.1 < error(alone, coupling.program, x)
    assert {tensor.dtype for tensor in fitted.state_dict().values()} == {dtype}


def in_a_loop(s: Any, x: Tensor) -> Tensor:
    for _ in range(4):
        x = x + s.twins(x).tanh()
    return x


def in_two_towers(s: Any, x: Tensor) -> Tensor:
    product: Tensor = s.twins(x) * s.twins(x.cos())
    return product


def at_two_sizes(s: Any, x: Tensor) -> Tensor:
    both: Tensor = torch.cat([s.twins(x), s.twins(x[..., ::2])], -1)
    return both


SHARED: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], Twins]]] = {
    "loop": (in_a_loop, lambda: Twins(nn.Linear(8, 6), nn.Linear(6, 8))),
    "loop without biases": (in_a_loop, lambda: without_biases(Twins(nn.Linear(8, 6, bias=False), nn.Linear(6, 8)))),
    "two towers": (in_two_towers, lambda: Twins(nn.Linear(8, 5), nn.Linear(6, 8))),
    "two sizes": (at_two_sizes, lambda: Twins(nn.Conv1d(8, 5, 3), nn.Conv1d(6, 8, 1))),
    "two sizes, in groups": (
        at_two_sizes, lambda: within_groups(Twins(nn.Conv1d(8, 6, 3, groups=2), nn.Conv1d(6, 8, 1)))
    ),
    "two sizes, transposed, in groups": (
        at_two_sizes, lambda: within_groups(Twins(nn.ConvTranspose1d(8, 6, 3, groups=2), nn.Conv1d(6, 8, 1)))
    ),
}  # fmt: skip


def without_biases(twins: Twins) -> Twins:
    with torch.no_grad():
        twins.first.bias.zero_()  # type: ignore[union-attr]
    return twins


def within_groups(twins: Twins) -> Twins:
    """The twins of the first half of each of two groups are its second half."""
    with torch.no_grad():
        order = [0, 1, 4, 5, 2, 3, 6, 7]
        twins.first.weight.copy_(twins.first.weight[order])
    return without_biases(twins)


@pytest.mark.parametrize("name", SHARED)
def test_a_weight_that_several_calls_share_is_fitted_to_all_of_them(name: str) -> None:
    torch.manual_seed(0)
    forward, twins = SHARED[name]
    x = torch.randn(64, 6, 12) if "sizes" in name else torch.randn(64, 6)
    coupling = coupled(Function(forward, twins=twins()), x[:2])
    (group,) = (group for group in coupling.groups if group.width == (4 if "groups" in name else 8))
    alone, fitted = after(coupling, {group: [*range(group.width // 2, group.width)]}, x.split(8))
    assert error(alone, coupling.program, x) > 0.1
    assert error(fitted, coupling.program, torch.randn_like(x)) < SMALL


def test_the_pass_fits_on_given_data_alone_and_says_how_well() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    program = traced(Twins(nn.Linear(8, 5), nn.Linear(6, 8)).eval(), x[:2])
    options = {"ratio": 0.4, "granularity": 1}
    errors = {}
    for origin in (GIVEN, "drawn"):
        context = Context(profile(), None, Calibration([Inputs((part,)) for part in x.split(8)], origin))
        errors[origin] = error(PruneChannels(**options).run(program, context), program, x)  # type: ignore[arg-type]
        assert any(note.startswith("Fitted 1 layers") for note in context.notes) == (origin == GIVEN)
    assert errors[GIVEN] < SMALL < errors["drawn"]


def test_values_that_are_not_finite_are_named_with_the_layer() -> None:
    x = torch.randn(16, 6)
    x[9] = torch.inf
    coupling = coupled(Twins(nn.Linear(8, 5), nn.Linear(6, 8)), x[:2])
    (group,) = coupling.groups
    with pytest.raises(UserError, match="last has infinite or NaN values"):
        after(coupling, {group: [4]}, x.split(4))
