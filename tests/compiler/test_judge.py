from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Budget
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.judge import Judgement, probes
from planish.compiler.plan import PlannedPass
from planish.compiler.plugins import registry
from planish.compiler.program import Program, set_tensor
from planish.compiler.trace import trace
from tests.compiler.fakes import FakeBackend, Scale, context_of, judge_of, scaled


@pytest.fixture(scope="module")
def program() -> Program:
    return trace(nn.Linear(4, 3), Inputs((torch.randn(2, 4),)))


def judged(
    program: Program, backend: FakeBackend, scratch: Path, requested: bool = False, **options: object
) -> Judgement:
    judge = judge_of(backend, program, scratch, **options)
    rewritten = Scale().run(program, context_of(program))
    return judge.compare(judge.baseline(program), rewritten, PlannedPass(Scale(), "why", requested))


def by_step(*figures: float) -> object:
    return lambda program: figures[scaled(program)]


def test_a_faster_pass_is_kept_with_both_times(program: Program, tmp_path: Path) -> None:
    found = judged(program, FakeBackend(latency_of=by_step(2.0, 1.0)), tmp_path)  # type: ignore[arg-type]
    assert found.outcome == "kept"
    assert found.verdict == "2 -> 1 ms measured (2.00x as fast)."
    assert found.before.latency and found.after.latency
    assert (found.before.latency.median_ms, found.after.latency.median_ms) == (2.0, 1.0)
    assert scaled(found.candidate.program) == 1


@pytest.mark.parametrize("after", [1.0, 1.5, 0.985])
def test_a_pass_that_is_not_clearly_faster_is_undone_with_both_times(
    program: Program, tmp_path: Path, after: float
) -> None:
    found = judged(program, FakeBackend(latency_of=by_step(1.0, after)), tmp_path)  # type: ignore[arg-type]
    assert found.outcome == "undone"
    assert f"1 -> {after:.3g} ms measured" in found.verdict and "no faster" in found.verdict


def test_a_requested_pass_that_is_slower_is_kept_with_the_figures(program: Program, tmp_path: Path) -> None:
    backend = FakeBackend(latency_of=by_step(1.0, 3.0))  # type: ignore[arg-type]
    found = judged(program, backend, tmp_path, requested=True)
    assert found.outcome == "kept on request"
    assert found.verdict == "Kept although it does not pay: 1 -> 3 ms measured (0.33x as fast), no faster."


def test_both_artifacts_are_timed_in_one_run(program: Program, tmp_path: Path) -> None:
    backend = FakeBackend()
    judged(program, backend, tmp_path)
    assert backend.timings == [2]


@pytest.mark.parametrize(
    ("budget", "outcome"),
    [
        (None, "undone"),
        (Budget(size_mb=0.002), "undone"),
        (Budget(size_mb=0.0005), "kept"),
        (Budget(size_mb=0), "kept"),
    ],
)
def test_a_smaller_artifact_is_kept_only_where_the_budget_asks_for_size(
    program: Program, tmp_path: Path, budget: Budget | None, outcome: str
) -> None:
    backend = FakeBackend(latency_of=by_step(1.0, 1.1), bytes_of=by_step(1000, 400))  # type: ignore[arg-type]
    found = judged(program, backend, tmp_path, budget=budget)
    assert found.outcome == outcome
    assert outcome == "undone" or "0.40 of the size" in found.verdict


def test_a_budget_of_size_keeps_nothing_that_is_not_smaller(program: Program, tmp_path: Path) -> None:
    backend = FakeBackend(latency_of=by_step(1.0, 1.1), bytes_of=by_step(1000, 990))  # type: ignore[arg-type]
    assert judged(program, backend, tmp_path, budget=Budget(size_mb=0)).outcome == "undone"


@pytest.mark.parametrize(
    ("allowed", "requested", "outcome"),
    [(0.05, False, "undone"), (0.05, True, "kept on request"), (0.2, False, "kept"), (None, False, "kept")],
)
def test_a_metric_that_falls_below_the_budget_undoes_a_faster_pass(
    program: Program, tmp_path: Path, allowed: float | None, requested: bool, outcome: str
) -> None:
    backend = FakeBackend(latency_of=by_step(2.0, 1.0))  # type: ignore[arg-type]
    scores = iter([0.9, 0.8])
    found = judged(
        program, backend, tmp_path, requested, budget=Budget(metric_drop=allowed), metric=lambda run: next(scores)
    )
    assert found.outcome == outcome
    assert (found.before.metric, found.after.metric) == (0.9, 0.8)
    if outcome != "kept":
        assert "0.9000 to 0.8000" in found.verdict and "0.05" in found.verdict


def test_a_metric_that_is_no_number_any_more_undoes_the_pass(program: Program, tmp_path: Path) -> None:
    backend = FakeBackend(latency_of=by_step(2.0, 1.0))  # type: ignore[arg-type]
    scores = iter([0.9, float("nan")])
    budget = Budget(metric_drop=0.5)
    assert judged(program, backend, tmp_path, budget=budget, metric=lambda run: next(scores)).outcome == "undone"


def test_the_metric_is_given_a_callable_of_the_artifact(program: Program, tmp_path: Path) -> None:
    x = torch.randn(5, 4)
    seen: list[Tensor] = []

    def metric(run: object) -> float:
        seen.append(run(x))  # type: ignore[operator]
        return 1.0

    judged(program, FakeBackend(damage=0.5), tmp_path, metric=metric)
    with torch.no_grad():
        torch.testing.assert_close(seen[0], program(x) + 0.5)
    assert len(seen) == 2


def test_a_metric_that_raises_is_a_user_error_with_what_it_raised(program: Program, tmp_path: Path) -> None:
    def metric(run: object) -> float:
        raise KeyError("label")

    with pytest.raises(UserError, match=r"Mend the metric: it raised KeyError: 'label'"):
        judged(program, FakeBackend(), tmp_path, metric=metric)


def test_a_metric_that_returns_no_number_is_a_user_error(program: Program, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Mend the metric"):
        judged(program, FakeBackend(), tmp_path, metric=lambda run: "good")


def test_a_device_that_cannot_be_timed_here_is_judged_by_estimates_that_say_so(
    program: Program, tmp_path: Path
) -> None:
    backend = FakeBackend(timed=False)
    found = judged(program, backend, tmp_path)
    assert backend.timings == []
    for figures in (found.before, found.after):
        assert figures.latency is not None and figures.latency.source == "estimated"
        assert "roofline" in figures.latency.how
    assert "ms estimated" in found.verdict and "measured" not in found.verdict


@pytest.mark.parametrize(("target", "outcome"), [("jetson-orin", "kept"), ("jetson-agx-xavier", "undone")])
def test_zeros_in_two_four_pay_on_an_absent_device_that_computes_with_them(
    target: str, outcome: str, tmp_path: Path
) -> None:
    dense = trace(nn.Sequential(nn.Linear(512, 512)), Inputs((torch.randn(2, 512),)))
    sparse = dense.fork()
    (weight, *_) = [node for node in sparse.graph.nodes if str(node.target) == "0.weight"]
    tensor = sparse.tensor(weight)
    assert tensor is not None
    set_tensor(sparse.graph_module, "0.weight", nn.Parameter(tensor.detach() * (torch.arange(512) % 4 < 2)))
    judge = judge_of(FakeBackend(timed=False), dense, tmp_path)
    judge.profile = registry().find_profile(target)
    found = judge.compare(judge.baseline(dense), sparse, PlannedPass(Scale(), "why"))
    assert found.outcome == outcome
    assert found.after.latency is not None
    assert ("2:4 weights at the sparse rate" in found.after.latency.how) == (outcome == "kept")


def test_the_error_of_a_pass_is_the_distance_of_its_program_from_the_one_before(
    program: Program, tmp_path: Path
) -> None:
    found = judged(program, FakeBackend(), tmp_path)
    with torch.no_grad():
        (x,) = program.example_inputs.leaves()
        before, after = program(x), found.candidate.program(x)
        expected = 10 * torch.log10((before.double() ** 2).sum() / ((before - after).double() ** 2).sum())
    assert found.after.snr_db == pytest.approx(float(expected), abs=1e-3)


def test_the_size_is_that_of_all_files(program: Program, tmp_path: Path) -> None:
    found = judged(program, FakeBackend(bytes_of=by_step(777, 333)), tmp_path)  # type: ignore[arg-type]
    assert (found.before.size_bytes, found.after.size_bytes) == (777, 333)
    assert found.before.macs == 12 and found.before.parameters == 15


def test_probes_are_means_of_rows_that_no_pass_has_seen() -> None:
    rows = torch.randn(8, 3)
    (found,) = probes(Calibration([Inputs.of(rows)], "given"), Inputs.of(rows))
    (probe,) = found.leaves()
    torch.testing.assert_close(probe, (rows[:4] + rows[4:]) / 2)


def test_probes_of_whole_numbers_are_rows_of_the_data() -> None:
    ids = torch.randint(0, 9, (8, 3))
    (found,) = probes(Calibration([Inputs.of(ids)], "given"), Inputs.of(ids))
    assert torch.equal(found.leaves()[0], ids[:4])


def test_probes_of_data_with_one_row_a_batch_are_fresh_as_well() -> None:
    rows = [Inputs.of(torch.randn(1, 3)) for _ in range(8)]
    (found,) = probes(Calibration(rows, "given"), rows[0])
    assert not any(torch.equal(found.leaves()[0][:1], row.leaves()[0]) for row in rows)
