"""DropBlocks: which blocks are found, which go, and what is left."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Budget, Context, Situation
from planish.compiler.cost import totals
from planish.compiler.coupling.groups import couple
from planish.compiler.errors import UserError
from planish.compiler.hardware import Figure, HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.compiler.training_data import TrainingData
from planish.compiler.widths import Widths
from planish.passes.drop_blocks import DropBlocks
from planish.passes.prune_channels import PruneChannels
from planish.passes.pruning.blocks import find_blocks
from planish.passes.pruning.depth import without
from planish.passes.pruning.measures import EstimatedLatency
from planish.passes.training.settings import Training
from tests.backends.to_onnx.family_base import Function
from tests.passes.nets import profile, traced


class Residual(nn.Module):
    """``x + gain · branch(x)``, with the given op behind it."""

    def __init__(self, width: int, gain: float, behind: Any = None):
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gain, self.behind = gain, behind

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.gain * self.narrow(self.wide(x).relu())
        result: Tensor = self.behind(y) if self.behind is not None else y
        return result


class Layer(nn.Module):
    """An encoder layer, normalized before or behind its residuals."""

    def __init__(self, before: bool):
        super().__init__()
        self.q, self.mix = nn.Linear(8, 24), nn.Linear(8, 8)
        self.ff = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.first, self.second, self.before = nn.LayerNorm(8), nn.LayerNorm(8), before

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.q(x).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :] > 0)
        result: Tensor = self.mix(mixed.transpose(1, 2).flatten(2))
        return result

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.before:
            x = x + self.attend(self.first(x), mask)
            return x + self.ff(self.second(x))
        x = self.first(x + self.attend(x, mask))
        return self.second(x + self.ff(x))


class Encoder(nn.Module):
    def __init__(self, before: bool):
        super().__init__()
        self.embed, self.norm = nn.Linear(5, 8), nn.LayerNorm(8)
        self.layers, self.head = nn.ModuleList(Layer(before) for _ in range(2)), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


def names(program: Program) -> list[str]:
    return [block.name for block in find_blocks(couple(program))]


def stack(*gains: float, behind: Any = None) -> tuple[Program, Tensor]:
    torch.manual_seed(0)
    blocks = [Residual(8, gain, behind) for gain in gains]
    x = torch.randn(16, 6)
    return traced(nn.Sequential(nn.Linear(6, 8), *blocks, nn.Linear(8, 3)), x), x


def context(x: Tensor) -> Context:
    return Context(profile(), None, Calibration([Inputs((x,))], "given"))


# ---------------------------------------------------------------------- found


@pytest.mark.parametrize("before", [True, False])
def test_attention_and_feed_forward_of_each_encoder_layer_are_blocks(before: bool) -> None:
    program = traced(Encoder(before), torch.randn(2, 4, 5), torch.ones(2, 4))
    blocks = find_blocks(couple(program))
    assert [block.name for block in blocks] == ["layers.0", "layers.0.ff", "layers.1", "layers.1.ff"]
    behind = {str(block.result.target) for block in blocks}
    assert behind == {"aten.add.Tensor" if before else "aten.layer_norm.default"}


def test_an_activation_behind_the_sum_belongs_to_the_block_if_the_input_has_it_too() -> None:
    program, _ = stack(1, 1, behind=F.relu)
    found = [str(block.result.target) for block in find_blocks(couple(program))]
    assert found == ["aten.add.Tensor", "aten.relu.default"]


def function(forward: Any, **layers: nn.Module) -> Program:
    return traced(Function(forward, **layers), torch.randn(2, 8))


@pytest.mark.parametrize(
    ("why", "forward"),
    [
        ("no shortcut", lambda s, x: s.c(s.b(s.a(x).relu()).relu())),
        ("a projection in the shortcut", lambda s, x: s.c(s.a(x) + s.b(x))),
        ("a shape that changes", lambda s, x: s.c((s.a(x)[:, None] + s.b(s.a(x))[:, :, None]).sum(2))),
        ("what is inside is read elsewhere", lambda s, x: (lambda y: (lambda z: s.c(y + s.b(z)) * z)(s.d(y)))(s.a(x))),
        ("no product in the branch", lambda s, x: (lambda y: s.c(y + y.relu()))(s.a(x))),
    ],
)
def test_what_is_no_block(why: str, forward: Any) -> None:
    layers = {name: nn.Linear(8, 8) for name in "abcd"}
    assert not names(function(forward, **layers)), why


def test_a_scaled_shortcut_is_one() -> None:
    program = function(lambda s, x: (lambda y: s.c(0.5 * y + s.b(y)))(s.a(x)), **{n: nn.Linear(8, 8) for n in "abc"})
    assert names(program) == ["b"]


def of_a_part(s: Any, x: Tensor, dropped: bool) -> Any:
    """A class token alone is updated (VOLO)."""
    y = s.a(x)
    return s.c(torch.cat([y[:, :4] if dropped else y[:, :4] + s.b(y)[:, :4], y[:, 4:]], 1))


def of_parts_side_by_side(s: Any, x: Tensor, dropped: bool) -> Any:
    """Tokens that were updated in another way are put together again (TimeSformer)."""
    u, v = s.a(x), s.d(x)
    whole = torch.cat([u, v], 1)
    return s.c((whole if dropped else whole + torch.cat([v, s.b(u)], 1)).unflatten(1, (2, 8)).sum(1))


@pytest.mark.parametrize("forward", [of_a_part, of_parts_side_by_side])
def test_a_shortcut_made_of_what_the_branch_reads_takes_the_place_of_the_sum(forward: Any) -> None:
    layers = {name: nn.Linear(8, 8) for name in "abcd"}
    program = function(lambda s, x: forward(s, x, False), **layers)
    coupling = couple(program)
    (block,) = find_blocks(coupling)
    x = torch.randn(3, 8)
    expected = function(lambda s, x: forward(s, x, True), **layers)(x)
    assert not torch.equal(program(x), expected)
    assert torch.equal(without(coupling.program, [block])(x), expected)


# ---------------------------------------------------------------------- dropped


def test_the_block_that_changes_least_goes_and_the_others_compute_on() -> None:
    program, x = stack(1.0, 1e-3, 0.5)
    told = context(x)
    pruned = DropBlocks(ratio=0.2, of="macs").run(program, told)
    verify(pruned, "dropping")
    model = {name: tensor for name, tensor in program.state_dict().items()}
    assert not any(name.startswith("2.") for name in pruned.state_dict())
    y = F.linear(x, model["0.weight"], model["0.bias"])
    for block, gain in (("1", 1.0), ("3", 0.5)):
        hidden = F.linear(y, model[f"{block}.wide.weight"], model[f"{block}.wide.bias"]).relu()
        y = y + gain * F.linear(hidden, model[f"{block}.narrow.weight"], model[f"{block}.narrow.bias"])
    torch.testing.assert_close(pruned(x), F.linear(y, model["4.weight"], model["4.bias"]))
    assert [decision.outcome for decision in told.decisions] == ["stays", "dropped", "stays"]
    assert told.notes[0].startswith("Removed 3")


def test_a_block_is_looked_at_again_once_others_are_gone() -> None:
    """The third undoes the first: alone it matters most, without the first it is what should go next."""
    torch.manual_seed(0)
    branch = Residual(8, 0.0)
    blocks = [copy.deepcopy(branch) for _ in range(3)]
    for block, gain in zip(blocks, (0.01, 0.0105, -0.011), strict=True):
        block.gain = gain
    x = torch.randn(16, 8)
    told = context(x)
    DropBlocks(ratio=0.5, of="macs").run(traced(nn.Sequential(*blocks), x), told)
    assert [decision.outcome for decision in told.decisions] == ["dropped", "stays", "dropped"]


def test_neighbouring_blocks_can_all_go() -> None:
    program, x = stack(1.0, 1.0, 1.0)
    pruned = DropBlocks(ratio=0.9, of="macs").run(program, context(x))
    state = program.state_dict()
    expected = F.linear(F.linear(x, state["0.weight"], state["0.bias"]), state["4.weight"], state["4.bias"])
    torch.testing.assert_close(pruned(x), expected)


@pytest.mark.parametrize("of", ["macs", "parameters"])
def test_the_ratio_is_reached_and_one_block_less_would_not_do(of: str) -> None:
    program, x = stack(1.0, 1.0, 1.0, 1.0)
    pruned = DropBlocks(ratio=0.4, of=of).run(program, context(x))
    assert 0.4 <= 1 - getattr(totals(pruned), of) / getattr(totals(program), of) < 0.65


def test_the_estimated_latency_counts_kernels() -> None:
    program, x = stack(1.0, 1.0, 1.0, 1.0)
    told = context(x)
    DropBlocks(ratio=0.3).run(program, told)
    assert "estimated latency" in told.notes[0]
    assert 1 <= sum(decision.outcome == "dropped" for decision in told.decisions) < 4


def test_kept_blocks_stay() -> None:
    program, x = stack(1.0, 1e-3, 0.5)
    pruned = DropBlocks(ratio=0.2, of="macs", keep=("2",)).run(program, context(x))
    assert any(name.startswith("2.") for name in pruned.state_dict())


def test_what_is_left_can_be_trained() -> None:
    program, x = stack(1.0, 1.0)
    told = context(x)
    told.train = TrainingData([(x, torch.randint(3, (16,)))])
    DropBlocks(ratio=0.3, of="macs", training=Training(steps=2)).run(program, told)
    assert any(note.startswith("Trained") for note in told.notes)


# ---------------------------------------------------------------------- proposals


def situation(share: float, trains: bool = True) -> Situation:
    """Eight residual blocks, the time of whose kernels hardly depends on their width, and so much of it to spend."""
    program, _ = stack(*[1.0] * 8)
    slow = {"fp32": Figure(value=50.0, measured=True)}
    device = profile().model_copy(update={"kernel_overhead_us": slow})
    return Situation(program, device, None, Budget(latency_ms=share * milliseconds(program, device)), trains)


def milliseconds(program: Program, device: HardwareProfile) -> float:
    return 1e3 * EstimatedLatency(Widths(couple(program)), device, None, 1)({})


def test_what_narrower_layers_do_not_reach_blocks_have_to_give() -> None:
    asked = situation(0.5)
    proposal = DropBlocks.propose(asked)
    assert proposal is not None and "half of all channels leave" in proposal.reason
    drop = proposal.compression
    assert isinstance(drop, DropBlocks) and drop.of == "latency" and 0.45 < drop.ratio < 0.55
    told = Context(asked.profile, None, Calibration([Inputs((torch.randn(16, 6),))], "given"))
    shallow = drop.run(asked.program, told)
    assert milliseconds(shallow, asked.profile) <= 1.01 * (asked.budget.latency_ms or 0)
    narrow = PruneChannels.propose(asked)
    assert narrow.compression is None or narrow.compression.options()["ratio"] < 0.1


def test_blocks_stay_where_the_budget_is_met_or_nothing_trains() -> None:
    assert DropBlocks.propose(situation(1.1)) is None
    assert DropBlocks.propose(situation(0.5, trains=False)) is None


def test_what_blocks_do_not_give_is_left_to_channels() -> None:
    asked = situation(0.05)
    deep, narrow = DropBlocks.propose(asked), PruneChannels.propose(asked)
    assert deep is not None and isinstance(deep.compression, DropBlocks)
    assert deep.compression.ratio < 0.8
    assert narrow.compression is None and narrow.reason.startswith("The budget is")


# ---------------------------------------------------------------------- bad input


def test_a_model_without_blocks_is_told() -> None:
    program = traced(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(2, 4))
    with pytest.raises(UserError, match="no block that its input could replace"):
        DropBlocks().run(program, context(torch.randn(2, 4)))


def test_without_data_it_says_so() -> None:
    program, _ = stack(1.0)
    with pytest.raises(UserError, match="what matters here is told by data"):
        DropBlocks().run(program, Context(profile(), None, Calibration([], "drawn")))


def test_a_ratio_out_of_reach_says_how_far_it_goes() -> None:
    program, x = stack(1.0)
    with pytest.raises(UserError, match=r"all blocks together are \d+\.\d% of the MACs, and 95\.0%"):
        DropBlocks(ratio=0.95, of="macs").run(program, context(x))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ratio": 1}, "share of at least 0 and below 1"),
        ({"of": "mac"}, "did you mean 'macs'"),
        ({"keep": "1"}, "a tuple of names"),
        ({"samples": 0}, "whole number of at least 1"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        DropBlocks(**options)


def test_a_name_that_no_block_has_is_told() -> None:
    program, x = stack(1.0)
    with pytest.raises(UserError, match="keep names '7', which is no block"):
        DropBlocks(keep=("7",)).run(program, context(x))
