from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from planish.compiler.calibration import GIVEN, Calibration
from planish.compiler.contracts import Context
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.compiler.verify import snr_db
from planish.passes.correct_biases import ChannelMeans, correct_biases
from planish.passes.erase_noops import EraseNoOps
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.observe import observe
from planish.passes.quantize_int8 import QuantizeInt8
from planish.passes.quantize_weights import QuantizeWeights
from tests.passes.nets import SCHEME, RandomCnn, aten, context, the, traced, warm

LAYERS = (aten.conv2d.default, aten.linear.default)


class Outputs(fx.Interpreter):
    """What the layers compute, by the quantize and dequantize nodes themselves."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.target in LAYERS:
            rows = value.flatten(2).mean(2) if value.ndim > 2 else value
            self.seen[n.name] = rows.double()
        return value


def outputs(program: Program, x: Tensor) -> dict[str, Tensor]:
    running = Outputs(program)
    with torch.no_grad():
        running.run(x, enable_io_processing=False)
    return running.seen


def quantized(model: nn.Module, x: Tensor) -> tuple[Program, Program]:
    """Without batch norms, in float and in integers with the old biases."""
    program = FoldBatchNorm().run(traced(warm(model), x), context())
    return program, QuantizeInt8(bias_samples=0).run(program, context(SCHEME, x))


def corrected_on(batches: list[Tensor], program: Program, reference: Program) -> Program:
    """``program`` with the biases that these batches ask for."""
    rows = [Inputs((batch,)) for batch in batches]
    means = ChannelMeans(reference, len(rows))
    observe(reference, (), rows, means.see)
    return correct_biases(program, means, rows)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 2**16))
def test_on_the_rows_it_saw_no_layer_is_off_by_more_than_chance(choices: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    model, x = RandomCnn(choices), torch.randn(32, 3, 8, 8)
    reference, before = quantized(model, x)
    corrected = corrected_on([x], before, reference)
    verify(corrected, "correcting")
    wanted, got = outputs(reference, x), outputs(corrected, x)
    assert got
    for name, rows in got.items():
        errors = wanted[name] - rows
        by_chance = errors.std(0) / len(errors) ** 0.5
        assert (errors.mean(0).abs() <= by_chance + 1e-3 * rows.abs().max()).all(), name


class Shifted(nn.Module):
    """Weights that all round down, and inputs above zero: each output is too small by as much."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randint(1, 60, (8, 1, 3, 3)) + 0.45)
            self.layer.weight[:, :, 0, 0] = 127.0

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


def test_a_layer_without_a_bias_gets_one_that_makes_up_for_its_weights() -> None:
    x = torch.rand(16, 8, 12, 12)
    reference, before = quantized(Shifted(), x)
    error = (reference(x) - before(x)).mean()
    assert error > 1
    corrected = corrected_on([*x.split(4)], before, reference)
    assert (reference(x) - corrected(x)).mean().abs() < 0.02 * error


def test_what_is_exact_in_integers_keeps_its_biases() -> None:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[127.0, -3, 50, 1], [0, 127, -127, 2]]))
    x = torch.randint(-100, 28, (16, 4)).float()
    x[0] = torch.tensor([-128.0, 127, 0, 0])
    reference, before = quantized(layer, x)
    assert torch.equal(reference(x), before(x))
    corrected = corrected_on([x], before, reference)
    bias = corrected.tensor(the(corrected, aten.linear.default).args[2])
    assert bias is not None and torch.equal(bias, layer.bias)


def test_one_row_teaches_nothing() -> None:
    x = torch.rand(1, 8, 12, 12)
    reference, before = quantized(Shifted(), x)
    wanted = before(x)
    assert torch.equal(corrected_on([x], before, reference)(x), wanted)


def test_layers_that_share_weights_get_biases_of_their_own() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Shifted()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), self.layer(3 * x.square())

    x = torch.rand(16, 8, 12, 12)
    reference, before = quantized(Twice(), x)
    corrected = corrected_on([x], before, reference)
    for wanted, got in zip(pytree.tree_leaves(reference(x)), pytree.tree_leaves(corrected(x)), strict=True):
        assert (wanted - got).mean().abs() < 0.05


def test_layers_that_were_integers_before_keep_their_biases() -> None:
    x = torch.rand(16, 8, 12, 12)
    _, before = quantized(Shifted(), x)
    again = corrected_on([x], before.fork(), before)
    assert the(again, aten.conv2d.default).args[2] is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", [QuantizeInt8, QuantizeWeights])
def test_depthwise_layers_of_a_trained_model_gain_the_most(
    kind: type[QuantizeInt8 | QuantizeWeights], zoo: ModuleType
) -> None:
    case = zoo.load_real("mobilenetv1-imagenet")
    profile = registry().find_profile("raspberry-pi-4")
    scheme = registry().find_backend(profile.backend).scheme(profile)
    here = Context(profile, scheme, Calibration([Inputs((case.inputs[:32],))], GIVEN))
    program = EraseNoOps().run(traced(case.model, case.inputs[:2]), here)
    program = FoldBatchNorm().run(program, here)
    found = []
    with torch.no_grad():
        for bias_samples in (0, 8):
            made = kind(bias_samples=bias_samples).run(program, here)
            found.append(snr_db(program(case.inputs[100:200]), made(case.inputs[100:200])))
    before, after = found
    assert before is not None and after is not None and after > before + 3
