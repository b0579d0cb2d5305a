from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.compiler.verify import snr_db
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.sparsify import Sparsify
from tests.passes.nets import traced, warm

aten = torch.ops.aten


class Net(nn.Module):
    """Convolutions with batch norms, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body, self.n1 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.middle, self.head = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n1(self.body(self.n0(self.stem(x)).relu())).relu()
        return self.head(self.middle(y.mean((2, 3))).relu())


X = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def situation(target: str = "a100", *, origin: str = "given") -> Context:
    return Context(registry().find_profile(target), None, Calibration([Inputs((X,))], origin))


def sparse(model: nn.Module, told: Context | None = None, **options: Any) -> Program:
    program = Sparsify(**options).run(traced(warm(model), X[:2]), told or situation())
    verify(program, "sparsify")
    return program


def weights(program: Program) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in program.state_dict().items() if tensor.ndim > 1}


def is_two_four(weight: Tensor) -> bool:
    """By brute force: each four neighbouring input channels, of each output and each tap."""
    taps = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
    return all(
        sum(bool(taps[output, channel + offset, tap] != 0) for offset in range(4)) <= 2
        for output in range(taps.shape[0])
        for channel in range(0, taps.shape[1], 4)
        for tap in range(taps.shape[2])
    )


def test_the_oracle_knows_one_group_that_is_not_two_four() -> None:
    weight = torch.tensor([1.0, 0, 0, 2]).repeat(8, 4)
    assert is_two_four(weight)
    weight[3, 9] = 1
    assert not is_two_four(weight)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
def test_every_eligible_layer_is_two_four_and_no_other_changes(criterion: str) -> None:
    model = warm(Net())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = weights(Sparsify(criterion=criterion, permute=False).run(traced(model, X[:2]), situation()))
    assert is_two_four(after["body.weight"]) and is_two_four(after["middle.weight"])
    assert torch.equal(after["stem.weight"], before["stem.weight"])
    assert torch.equal(after["head.weight"], before["head.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_unstructured_leaves_the_share_that_was_asked_for(criterion: str, scope: str) -> None:
    after = weights(sparse(Net(), pattern="unstructured", ratio=0.8, criterion=criterion, scope=scope))
    zeros, count = sum(int((w == 0).sum()) for w in after.values()), sum(w.numel() for w in after.values())
    # Wanda and SparseGPT choose output by output and strip by strip: each rounds
    assert zeros / count == pytest.approx(0.8, abs=0.002 if criterion == "magnitude" else 0.02)


def test_blocks_are_zero_as_a_whole() -> None:
    after = weights(sparse(Net(), situation("x86-avx512-vnni"), pattern="16x16", ratio=0.5))
    tiles = after["middle.weight"].unflatten(1, (-1, 16)).unflatten(0, (-1, 16)).abs().sum((1, 3))
    assert bool((tiles == 0).any()) and bool((tiles != 0).any())
    assert int((after["middle.weight"] == 0).sum()) == 256 * int((tiles == 0).sum())


def test_sparsegpt_computes_nearer_to_the_dense_model_than_magnitude() -> None:
    model = warm(Net())
    found = {}
    with torch.no_grad():
        expected = model(X)
        for criterion in ("magnitude", "sparsegpt"):
            program = Sparsify(criterion=criterion).run(traced(model, X[:2]), situation())
            found[criterion] = snr_db(expected, program(X)) or 0.0
    assert found["sparsegpt"] > found["magnitude"] + 6  # half the error


@pytest.mark.parametrize(
    ("criterion", "permute", "reordered"),
    [("magnitude", None, True), ("wanda", None, False), ("wanda", True, True), ("magnitude", False, False)],
)
def test_channels_are_reordered_where_magnitude_chooses_and_where_the_user_says(
    criterion: str, permute: bool | None, reordered: bool
) -> None:
    told = situation()
    sparse(Net(), told, criterion=criterion, permute=permute)
    assert any(each.outcome == "channels reordered" for each in told.decisions) == reordered


def test_folding_batch_norms_keeps_the_zeros() -> None:
    program = sparse(Net())
    folded = FoldBatchNorm().run(program, situation())
    kept = weights(folded)
    assert is_two_four(kept["body.weight_folded"]) and is_two_four(kept["middle.weight"])
    with torch.no_grad():
        torch.testing.assert_close(folded(X), program(X), rtol=1e-3, atol=1e-3)


def test_every_layer_is_decided_with_its_reason() -> None:
    told = situation()
    sparse(Net(), told, keep=("middle",))
    decided = {each.module: (each.outcome, each.reason) for each in told.decisions}
    assert decided["stem"] == ("dense", "its 3 input channels are no multiple of 4")
    assert decided["middle"] == ("dense", "kept dense on request")
    assert decided["head"] == ("dense", "2:4 kernels take 16n input and 8n output channels; it has 64 and 10")
    assert decided["body"][0] == "2:4" and decided["body"][1].startswith("50% zeros; ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pattern": "4:2"}, "N below M"),
        ({"pattern": "unstructured"}, "above 0 and below 1, not None"),
        ({"pattern": "unstructured", "ratio": 1.5}, "above 0 and below 1, not 1.5"),
        ({"pattern": "block", "ratio": 0}, "above 0 and below 1, not 0"),
        ({"ratio": 0.9}, "2:4 is a ratio already"),
        ({"criterion": "wander"}, "did you mean 'wanda'"),
        ({"scope": "model"}, "known are global, layer"),
        ({"keep": "head"}, "Give keep a tuple of module names"),
        ({"samples": 0}, "a whole number of at least 1, not 0"),
        ({"min_channels": 1.5}, "a whole number of at least 1, not 1.5"),
    ],
)
def test_a_wrong_option_is_told_in_a_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Sparsify(**options)


def test_a_pattern_that_the_target_does_not_run_is_told_with_the_targets_that_do() -> None:
    with pytest.raises(UserError, match=r"a target that computes with 2:4 sparsity \(a10, a100, .*\): .* does not"):
        sparse(Net(), situation("x86-avx512-vnni"))


def test_patterns_that_only_files_gain_from_run_on_every_target() -> None:
    assert sparse(Net(), situation("x86-avx512-vnni"), pattern="4:8")


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_drawn_inputs_are_no_calibration_data(criterion: str) -> None:
    with pytest.raises(UserError, match=rf'Pass calibration data for Sparsify\(criterion="{criterion}"\)'):
        sparse(Net(), situation(origin="drawn from a normal distribution"), criterion=criterion)


def test_a_model_without_an_eligible_layer_is_told_why() -> None:
    with pytest.raises(UserError, match=r"no layer of this model can be 2:4 \(1: 2:4 kernels .*, and 1 more\)"):
        sparse(nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Linear(6, 8)))
    with pytest.raises(UserError, match="it has no convolution or matrix product with weights"):
        sparse(nn.Sequential(nn.ReLU()))


def test_an_unknown_module_to_keep_is_told_with_the_closest() -> None:
    with pytest.raises(UserError, match="keep names 'middel', which is no module of the model; did you mean 'middle'"):
        sparse(Net(), keep=("middel",))


def test_the_pass_is_known_by_name_and_its_options_round_trip() -> None:
    chosen = Sparsify(pattern="unstructured", ratio=0.9, keep=("head",))
    assert registry().find_pass("sparsify").from_options(chosen.options()) == chosen
