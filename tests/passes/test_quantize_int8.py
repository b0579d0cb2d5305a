from __future__ import annotations

from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import planish
from planish.compiler.contracts import Budget, Situation
from planish.compiler.errors import PassError, UserError
from planish.compiler.hardware import Figure
from planish.compiler.progress import Stages
from planish.compiler.rules import verify
from planish.compiler.verify import snr_db
from planish.passes.calibrators import CALIBRATORS
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.quantize_int8 import QuantizeInt8
from tests.compiler.models import Cnn, case
from tests.passes.nets import SCHEME, context, profile, traced, warm


def situation(model: nn.Module, x: Tensor, **changes: object) -> Situation:
    values = {"profile": profile(), "scheme": SCHEME, "budget": Budget()} | changes
    return Situation(traced(model, x), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_makes_a_network_that_computes_nearly_the_same(calibrator: str) -> None:
    x = torch.randn(16, 3, 8, 8)
    program = FoldBatchNorm().run(traced(warm(Cnn()), x), context())
    with torch.no_grad():
        made = QuantizeInt8(calibrator=calibrator).run(program, context(SCHEME, x))
        verify(made, "quantizing")
        found = snr_db(program(x), made(x))
    assert found is not None and found > 20


def test_every_decision_is_recorded_with_its_module_and_reason() -> None:
    x = torch.randn(4, 3, 8, 8)
    told = context(SCHEME, x)
    QuantizeInt8(keep_float=("branch",)).run(FoldBatchNorm().run(traced(warm(Cnn()), x), context()), told)
    found = {(decision.module, decision.op): (decision.outcome, decision.reason) for decision in told.decisions}
    assert found["stem.0", "aten.conv2d"] == ("int8", "runs in integers, with aten.relu")
    assert found["branch.0", "aten.conv2d"] == ("float", "kept float on request")
    assert found["head", "aten.linear"] == ("int8", "runs in integers")
    assert found["", "aten.add"] == ("float", "not all of its inputs are integers already")


def test_the_display_counts_the_rows_that_are_read() -> None:
    told: list[str] = []

    class Told(Stages):
        def say(self, what: str, share: float | None = None) -> None:
            told.append(what)

    here = context(SCHEME, torch.randn(6, 4), torch.randn(2, 4))
    here.progress = Told(Console())
    QuantizeInt8().run(traced(nn.Linear(4, 3), torch.randn(2, 4)), here)
    assert told == [f"quantize-int8: {rows} rows of calibration data" for rows in (4, 6, 8)]


def test_no_more_rows_than_asked_for_are_read() -> None:
    rows = torch.cat([torch.randn(6, 4), torch.full((2, 4), 1e6)])
    program = traced(nn.Linear(4, 3), torch.randn(2, 4))
    few = QuantizeInt8("minmax", samples=6).run(program, context(SCHEME, rows))
    all_ = QuantizeInt8("minmax", samples=8).run(program, context(SCHEME, rows))

    def scale(made: planish.Program) -> float:
        quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
        return float(next(made.calls(quantize)).args[1])  # type: ignore[arg-type]

    exact = max(float(rows[:6].max()), 0) - min(float(rows[:6].min()), 0)
    assert scale(few) == pytest.approx(exact / 255, rel=1e-5)
    assert scale(all_) > 1e3


def test_the_same_data_gives_the_same_bytes() -> None:
    x = torch.randn(8, 3, 8, 8)
    program = traced(warm(Cnn()), x)
    first, second = (QuantizeInt8().run(program, context(SCHEME, x)).state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unknown_calibrator_is_told_with_the_closest_name() -> None:
    with pytest.raises(UserError, match=r"no calibrator 'mes'; did you mean 'mse'\?"):
        QuantizeInt8(calibrator="mes")


def test_less_than_one_sample_is_refused() -> None:
    with pytest.raises(UserError, match="at least one sample, not 0"):
        QuantizeInt8(samples=0)


def test_a_module_that_does_not_exist_is_told_with_the_closest_name() -> None:
    x = torch.randn(4, 3, 8, 8)
    with pytest.raises(UserError, match=r"'branhc', which is no module of the model; did you mean 'branch'"):
        QuantizeInt8(keep_float=("branhc",)).run(traced(Cnn(), x), context(SCHEME, x))


def test_a_single_name_instead_of_a_tuple_of_names_is_understood_or_refused() -> None:
    try:
        wanted = QuantizeInt8(keep_float="head").keep_float  # type: ignore[arg-type]
    except UserError as refusal:
        assert "keep_float" in str(refusal)
    else:
        assert wanted == ("head",), "it is read letter by letter"


def test_a_device_without_int8_is_a_user_error_that_names_it() -> None:
    with pytest.raises(UserError, match=profile().title):
        QuantizeInt8().run(traced(Cnn(), torch.randn(2, 3, 8, 8)), context(None))


def test_a_model_without_a_layer_to_quantize_fails_where_the_pass_was_asked_for() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(PassError, match="no layer of the model can run in INT8"):
        QuantizeInt8().run(traced(nn.ReLU(), x), context(SCHEME, x))


def test_it_is_not_planned_for_a_model_without_a_layer_to_quantize() -> None:
    recurrent = case("recurrent")
    for model, x in ((nn.ReLU(), torch.randn(2, 3)), (recurrent.model, recurrent.inputs.args[0])):
        proposal = QuantizeInt8.propose(situation(model, x))
        assert proposal is None or proposal.compression is None


def test_it_is_planned_where_integers_are_faster_with_the_rates() -> None:
    proposal = QuantizeInt8.propose(situation(Cnn(), torch.randn(2, 3, 8, 8)))
    assert proposal.compression == QuantizeInt8()
    assert "6,144 GOP/s against 1,536" in proposal.reason and "4.0x" in proposal.reason


def test_it_is_left_out_where_integers_are_no_faster_but_for_a_budget_of_size() -> None:
    fast = profile()
    rates = {**fast.units[0].peak_gops, "int8": Figure(value=1000, estimated=True)}
    slow = fast.model_copy(update={"units": (fast.units[0].model_copy(update={"peak_gops": rates}),)})
    x = torch.randn(2, 3, 8, 8)
    left_out = QuantizeInt8.propose(situation(Cnn(), x, profile=slow))
    assert left_out.compression is None and "no faster" in left_out.reason
    small = QuantizeInt8.propose(situation(Cnn(), x, profile=slow, budget=Budget(size_mb=1)))
    assert small.compression == QuantizeInt8() and "budget" in small.reason
    none = QuantizeInt8.propose(situation(Cnn(), x, scheme=None))
    assert none.compression is None and fast.title in none.reason


@pytest.mark.slow
def test_resnet20_loses_at_most_a_third_of_a_point_on_real_images(zoo: ModuleType) -> None:
    real = zoo.load_real("resnet20-cifar10")
    images, _ = zoo.cifar10("train_20k")
    calibration = zoo.imagenet_norm(images[:256])
    result = planish.compile(real.model, "x86-avx512-vnni", calibration=calibration.split(64), passes=[QuantizeInt8()])
    before, after = real.score(real.model), real.score(result.run)
    assert before - after <= 0.003
    assert result.artifact.size_bytes < 0.35 * sum(4 * p.numel() for p in real.model.parameters())
