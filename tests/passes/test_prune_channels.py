"""PruneChannels: what goes, how much, and what is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.alignment import find_axes
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Budget, Context, Situation
from planish.compiler.cost import totals
from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.groups import Group, couple
from planish.compiler.errors import UserError
from planish.compiler.hardware import Figure
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, get_attribute
from planish.compiler.rules import verify
from planish.compiler.trace import trace
from planish.compiler.widths import Widths
from planish.passes.prune_channels import PruneChannels
from planish.passes.pruning.measures import EstimatedLatency
from tests.compiler.coupling.nets import nets
from tests.passes.nets import profile, traced

NETS = {family.name: family for family in nets()}


def context() -> Context:
    return Context(profile(), None, Calibration([], "drawn"))


def block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def network() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(
        *block(3, 32), *block(32, 64), *block(64, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )
    return traced(model, torch.randn(2, 3, 16, 16))


def widths_of(program: Program) -> dict[str, int]:
    return {
        name.removesuffix(".weight"): len(tensor) for name, tensor in program.state_dict().items() if tensor.ndim > 1
    }


# ---------------------------------------------------------------------- what goes


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        *((name, "l2") for name in (
            "grouped convolution", "batch norm", "residual", "squeeze and excite", "attention, grouped queries",
            "zero-padded shortcut", "LSTM of two layers and directions", "channel shuffle", "flattened image",
        )),
        *(("cat", criterion) for criterion in ("l1", "l2", "lamp")),
    ],
)  # fmt: skip
def test_units_without_weight_go_and_outputs_stay(name: str, criterion: str) -> None:
    torch.manual_seed(0)
    inputs = NETS[name].inputs(2).map(lambda leaf: leaf.double())
    program = trace(NETS[name].build().double().eval(), inputs)
    groups = couple(program).groups
    dead = {group.name: max(1, group.width // 2) for group in groups}
    for group in groups:
        _silence(program, group, dead[group.name])
    shares = {group.name: dead[group.name] / group.width for group in groups}
    pruned = PruneChannels(ratio=0, criterion=criterion, ratios=shares, granularity=1).run(program, context())

    coupling = couple(program)
    expected = cut(coupling, {group: range(dead[group.name]) for group in coupling.groups})
    assert [*pruned.state_dict()] == [*expected.state_dict()]
    for name, tensor in expected.state_dict().items():
        assert torch.equal(pruned.state_dict()[name], tensor)
    torch.testing.assert_close(inputs.call(pruned), inputs.call(program), atol=1e-10, rtol=1e-10)


def _silence(program: Program, group: Group, count: int) -> None:
    """Set all weights of the first units to zero."""
    with torch.no_grad():
        for member in group.members:
            if member.learned:
                silent = (member.units >= 0) & (member.units < count)
                get_attribute(program.graph_module, member.tensor).index_fill_(
                    member.axis, silent.nonzero().flatten(), 0
                )


def test_the_least_important_channels_of_a_group_go() -> None:
    program = network()
    pruned = PruneChannels(ratio=0, ratios={"0": 0.5}, criterion=lambda _, group: -torch.arange(group.width)).run(
        program, context()
    )
    assert torch.equal(pruned.state_dict()["0.weight"], program.state_dict()["0.weight"][:16])


# ---------------------------------------------------------------------- how much


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("of", ["macs", "parameters"])
@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_the_share_that_was_asked_for_goes_and_not_much_more(scope: str, of: str, ratio: float) -> None:
    program = network()
    pruned = PruneChannels(ratio=ratio, of=of, scope=scope, granularity=1).run(program, context())
    removed = 1 - getattr(totals(pruned), of) / getattr(totals(program), of)
    assert ratio <= removed < ratio + 0.03
    verify(pruned, "pruning")
    assert pruned(torch.randn(3, 3, 16, 16)).shape == (3, 10)


def test_the_estimated_latency_is_what_its_share_is_taken_of() -> None:
    program = network()
    pruned = PruneChannels(ratio=0.4, of="latency", granularity=8).run(program, context())
    before, after = (EstimatedLatency(Widths(couple(each)), profile(), None, 8)({}) for each in (program, pruned))
    assert 0.4 <= 1 - after / before < 0.6


@pytest.mark.parametrize(
    ("name", "multiple"),
    [("attention, fused projection", 2), ("grouped convolution", 4), ("cat", 2), ("network", 4), ("network", 16)],
)
def test_all_axes_that_became_narrower_are_multiples(name: str, multiple: int) -> None:
    torch.manual_seed(0)
    program = network() if name == "network" else trace(NETS[name].build().eval(), NETS[name].inputs(2))
    before = {axis.whole for axis in find_axes(Widths(couple(program)))}
    pruned = PruneChannels(ratio=0.1, granularity=multiple, most=0.8).run(program, context())
    after = {axis.whole for axis in find_axes(Widths(couple(pruned)))}
    assert after != before
    assert all(size % multiple == 0 for size in after - before)


def test_the_target_says_what_widths_are_multiples_of() -> None:
    pruned = PruneChannels(ratio=0.5).run(network(), context())
    found = widths_of(pruned)
    assert [found[name] % 16 for name in ("0", "3", "6")] == [0, 0, 0]
    assert found["0"] + found["3"] + found["6"] < 160


def test_local_takes_the_same_share_of_every_width() -> None:
    found = widths_of(PruneChannels(ratio=0.5, scope="local", granularity=1).run(network(), context()))
    shares = [found[name] / width for name, width in (("0", 32), ("3", 64), ("6", 64))]
    assert max(shares) - min(shares) < 0.03


def test_of_nested_factors_only_one_is_cut_locally() -> None:
    torch.manual_seed(0)
    name = "attention, grouped queries"
    program = trace(NETS[name].build().eval(), NETS[name].inputs(2))
    before = {group.name: group.width for group in couple(program).groups}
    pruned = PruneChannels(ratio=0.3, scope="local", granularity=1).run(program, context())
    after = {group.name: group.width for group in couple(pruned).groups}
    heads = [group for group, width in before.items() if width == 2]
    assert heads
    assert all(after[group] == before[group] for group in heads)


def test_no_axis_loses_more_than_most() -> None:
    found = widths_of(
        PruneChannels(ratio=0.4, most=0.5, granularity=1, criterion=spare_all_but("0")).run(network(), context())
    )
    assert found["0"] == 16


def spare_all_but(name: str) -> Any:
    """A criterion to which the group of that name is worth nothing."""
    return lambda _, group: torch.linspace(1, 2, group.width) if group.name != name else _falling(group.width)


def _falling(width: int) -> Tensor:
    scores = torch.zeros(width)
    scores[-1] = width  # a mean above 0
    return scores


def test_kept_groups_stay_and_ratios_are_followed() -> None:
    found = widths_of(
        PruneChannels(ratio=0.3, keep=("0",), ratios={"3": 0.25}, granularity=1).run(network(), context())
    )
    assert (found["0"], found["3"]) == (32, 48)
    assert found["6"] < 64


def test_keeping_a_module_keeps_what_it_reads_as_well() -> None:
    found = widths_of(PruneChannels(ratio=0.05, keep=("6",), granularity=1).run(network(), context()))
    assert (found["3"], found["6"]) == (64, 64)
    assert found["0"] < 32


# ---------------------------------------------------------------------- what is told


def test_every_group_has_a_decision_and_what_stays_a_reason() -> None:
    told = context()
    PruneChannels(ratio=0.3, keep=("0",)).run(network(), told)
    outcomes = {(decision.module, decision.outcome, decision.reason) for decision in told.decisions}
    assert ("0", "32", "keep names '0'") in outcomes
    assert any(module == "3" and outcome.startswith("64 -> ") for module, outcome, _ in outcomes)
    assert any("output of the model" in decision.reason for decision in told.decisions)
    assert told.notes and told.notes[0].startswith("Removed 3")


def test_a_parameter_that_nothing_computes_with_disturbs_nothing() -> None:
    torch.manual_seed(0)
    program = trace(NETS["tied weights"].build().eval(), NETS["tied weights"].inputs(2))
    told = context()
    verify(PruneChannels(ratio=0.3, granularity=1).run(program, told), "pruning")
    assert told.decisions


def test_an_op_that_is_not_understood_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            return self.c(self.b(torch.linalg.pinv(self.a(x)[:, :, None]).squeeze(1)).relu())

    told = context()
    PruneChannels(ratio=0.2, granularity=1).run(traced(Odd(), torch.randn(2, 4)), told)
    assert any("not understood" in decision.reason and "pinv" in decision.op for decision in told.decisions)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ratio": 1.0}, "ratio a share of at least 0 and below 1, not 1.0"),
        ({"ratio": -0.1}, "not -0.1"),
        ({"ratio": True}, "not True"),
        ({"most": 1}, "most a share"),
        ({"ratios": {"a": 2}}, "ratios for 'a' a share"),
        ({"criterion": 3}, "no criterion 3"),
        ({"ratios": ["a"]}, "a dict of group names and shares"),
        ({"granularity": True}, "whole number of at least 1"),
        ({"criterion": "l3"}, "no criterion 'l3'; did you mean 'l"),
        ({"scope": "globl"}, "did you mean 'global'"),
        ({"of": "mac"}, "did you mean 'macs'"),
        ({"granularity": "tight"}, 'granularity="target" or a number'),
        ({"granularity": 0}, "whole number of at least 1"),
        ({"keep": "head"}, r"a tuple of names: \('head',\)"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        PruneChannels(**options)


@pytest.mark.parametrize(
    ("options", "told"), [({"keep": ("7x",)}, "keep names '7x'"), ({"ratios": {"03": 0.1}}, "did you mean")]
)
def test_names_that_nothing_has_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        PruneChannels(**options).run(network(), context())


def test_a_ratio_out_of_reach_says_how_far_it_goes() -> None:
    with pytest.raises(
        UserError, match=r"\d+\.\d% of the MACs is all that can go, not 95\.0%, where no axis loses more"
    ):
        PruneChannels(ratio=0.95, most=0.5).run(network(), context())


def test_a_model_in_which_nothing_can_be_cut_is_told() -> None:
    with pytest.raises(UserError, match="no channel of this model can be removed"):
        PruneChannels().run(traced(nn.Linear(4, 3), torch.randn(2, 4)), context())


def test_options_survive_a_plan() -> None:
    made = PruneChannels(0.3, keep=("0",), ratios={"3": 0.5}, granularity=8)
    assert PruneChannels.from_options(made.options()) == made


# ---------------------------------------------------------------------- proposals


def situation(budget: Budget, trains: bool) -> Situation:
    return Situation(network(), profile(), None, budget, trains)


def test_without_training_data_it_is_left_out() -> None:
    proposal = PruneChannels.propose(situation(Budget(), trains=False))
    assert proposal.compression is None
    assert "no training data" in proposal.reason


def test_with_training_data_it_is_planned() -> None:
    planned = PruneChannels.propose(situation(Budget(), trains=True)).compression
    assert planned == PruneChannels(criterion="taylor")


def test_a_budget_below_the_estimate_demands_it() -> None:
    program = network()
    estimate = 1e3 * EstimatedLatency(Widths(couple(program)), profile(), None, 16)({})
    proposal = PruneChannels.propose(situation(Budget(latency_ms=0.7 * estimate), trains=False))
    assert proposal.compression == PruneChannels(ratio=0.3, of="latency")
    assert "accuracy will be lost" in proposal.reason


def test_a_budget_far_below_the_estimate_is_not_met_by_pruning() -> None:
    proposal = PruneChannels.propose(situation(Budget(size_mb=1e-3), trains=True))
    assert proposal.compression is None
    assert "100% less, and removing channels reaches" in proposal.reason


@pytest.mark.parametrize("budget", [Budget(), Budget(latency_ms=1e-6), Budget(size_mb=1e-6)])
def test_layers_as_narrow_as_the_device_runs_fast_are_left_alone(budget: Budget) -> None:
    narrow = traced(
        nn.Sequential(*block(3, 16), *block(16, 16), nn.Flatten(), nn.Linear(4096, 10)), torch.randn(2, 3, 16, 16)
    )
    aligned = profile().model_copy(update={"channel_alignment": {"fp32": Figure(value=16.0, measured=True)}})
    proposal = PruneChannels.propose(Situation(narrow, aligned, None, budget, trains=True))
    assert proposal.compression is None
    assert "multiples of 16" in proposal.reason


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETS)[::4])
def test_what_is_planned_can_be_cut(name: str) -> None:
    """A plan is nobody's request: a pass in it that could only say what is out of reach would lose the whole."""
    torch.manual_seed(0)
    program = trace(NETS[name].build().eval(), NETS[name].inputs(2))
    asked = Situation(program, profile(), None, Budget(), trains=True)
    compression = PruneChannels.propose(asked).compression
    if compression is not None:
        told = context()
        assert isinstance(compression, PruneChannels)
        pruned = replace(compression, criterion="l2").run(program, told)
        assert totals(pruned).macs <= (1 - compression.ratio) * totals(program).macs


def test_the_program_that_is_pruned_stays_as_it_was() -> None:
    program = network()
    x = torch.randn(2, 3, 16, 16)
    before = Inputs((x,)).call(program)
    PruneChannels().run(program, context())
    assert torch.equal(program(x), before)


class Conditional(nn.Module):
    """A convolution whose weights the input mixes, one group an image: its number of groups is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.router, self.weights = nn.Linear(8, 2), nn.Parameter(torch.randn(2, 6, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        chosen = self.router(y.mean((2, 3))).sigmoid() @ self.weights.flatten(1)
        batch, _, height, width = y.shape
        mixed = nn.functional.conv2d(y.reshape(1, -1, height, width), chosen.reshape(-1, 8, 1, 1), groups=batch)
        z: Tensor = self.last(mixed.reshape(batch, 6, height, width))
        return z


def test_a_convolution_of_computed_weights_and_groups_is_understood_and_runs() -> None:
    x = torch.randn(2, 3, 4, 4)
    told = context()
    pruned = PruneChannels(ratio=0.2, granularity=1).run(
        traced(nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 3, 1), Conditional()), x), told
    )
    assert pruned(torch.randn(3, 3, 4, 4)).shape == (3, 4, 4, 4)
    assert not any("not understood" in decision.reason for decision in told.decisions)
