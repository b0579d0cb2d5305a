from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import planish
from planish.backends.to_onnx.backend import OnnxBackend
from planish.compiler.contracts import Budget
from planish.compiler.errors import LoweringError, VerificationError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.plugins import registry
from planish.compiler.report import Report
from planish.compiler.verify import is_quantized
from planish.passes.quantize_int8 import QuantizeInt8
from tests.compiler.fakes import FakeBackend, Scale, scaled
from tests.compiler.models import Cnn, Several, case

TARGET = "x86-avx512-vnni"


class Untimed(OnnxBackend):
    """The ONNX backend where times mean nothing to the test, and would only take long."""

    def cannot_time(self, profile: HardwareProfile) -> str | None:
        return "this test does not time"


class Digits(nn.Module):
    """Small, with a residual, and trained for a moment below."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.a(x)))
        y = F.max_pool2d(F.relu(y + self.b(y)), 2)
        result: Tensor = self.head(F.adaptive_max_pool2d(y, 1).flatten(1))
        return result


@dataclasses.dataclass
class Trained:
    model: Digits
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def accuracy(self, run: Any) -> float:
        with torch.no_grad():
            return float((run(self.test[0]).argmax(1) == self.test[1]).float().mean())


@pytest.fixture(scope="module")
def digits() -> Trained:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    torch.manual_seed(0)
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(12):
        for batch in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return Trained(model.eval(), (x[:1400], y[:1400]), (x[1400:], y[1400:]))


@pytest.fixture(scope="module")
def compiled(digits: Trained, tmp_path_factory: pytest.TempPathFactory) -> planish.Result:
    loader = DataLoader(TensorDataset(*digits.train), batch_size=32)
    return planish.compile(
        digits.model, TARGET, calibration=loader, metric=digits.accuracy, passes=[QuantizeInt8()],
        output=tmp_path_factory.mktemp("out") / "digits",
    )  # fmt: skip


def test_a_trained_network_keeps_its_accuracy_in_int8(digits: Trained, compiled: planish.Result) -> None:
    before = digits.accuracy(digits.model)
    assert before > 0.9, "the network has learned nothing: the test would prove nothing"
    assert digits.accuracy(compiled.run) >= before - 0.01
    result = compiled.report.result
    assert result is not None and result.metric == pytest.approx(digits.accuracy(compiled.run))


def test_an_artifact_computes_what_its_program_computes_at_any_batch_size(
    digits: Trained, compiled: planish.Result
) -> None:
    for rows in (1, 3, 7):
        x = digits.test[0][:rows]
        with torch.no_grad():
            program, model = compiled.program.module()(x), digits.model(x)
        spread = float(model.max() - model.min())
        assert float((compiled.run(x) - program).abs().max()) <= 0.03 * spread
        assert float((compiled.run(x) - model).abs().max()) <= 0.1 * spread
        assert compiled.run(x).shape == (rows, 10)


def test_the_report_has_the_figures_of_every_step(compiled: planish.Result) -> None:
    report = Report.load(compiled.artifact.folder / "report.json")
    assert report == compiled.report
    assert [step.compression for step in report.steps] == ["erase-no-ops", "fold-batch-norm", "quantize-int8"]
    assert [step.outcome for step in report.steps[:2]] == ["exact", "exact"]
    step = report.steps[2]
    assert step.outcome in ("kept", "kept on request") and "ms" in step.verdict
    assert step.before and step.after and step.after.size_bytes < step.before.size_bytes
    assert step.before.latency and step.after.latency and step.before.latency.source == step.after.latency.source
    assert step.after.snr_db is not None and step.after.snr_db > 15
    assert {decision.module for decision in step.decisions} >= {"a", "b", "head"}
    assert report.errors and report.peak_memory_mb > 0
    assert {"trace", "plan", "passes", "verify"} <= report.seconds.keys()
    assert "quantize-int8" in str(report)


def test_the_integers_are_in_the_file(compiled: planish.Result) -> None:
    assert is_quantized(compiled.program)
    (file,) = compiled.artifact.folder.glob("*.onnx")
    weights = sum(p.numel() for p in compiled.program.graph_module.parameters())
    assert weights < 100, "float weights are left"
    assert file.stat().st_size == compiled.artifact.size_bytes


def test_compiling_leaves_the_model_as_it_was(digits: Trained) -> None:
    before = {name: value.clone() for name, value in digits.model.state_dict().items()}
    generator = torch.random.get_rng_state()
    digits.model.train()
    planish.compile(
        digits.model, TARGET, calibration=[digits.train[0][:16]], passes=[QuantizeInt8()], backend=Untimed()
    )
    assert digits.model.training
    digits.model.eval()
    assert all(torch.equal(value, before[name]) for name, value in digits.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3)).eval()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        planish.compile(
            model, TARGET, torch.ones(2, 1, 8, 8), passes=[QuantizeInt8()], backend=Untimed(), seed=seed,
            output=tmp_path / name,
        )  # fmt: skip
    files = {name: (tmp_path / name / "model.onnx").read_bytes() for name in "abc"}
    assert files["a"] == files["b"]
    assert files["a"] != files["c"], "the seed draws nothing: this test proves nothing"
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_data_that_can_be_read_only_once_is_enough(digits: Trained) -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(digits.train[0][:64].split(16), digits.train[1][:64].split(16), strict=True)

    once = planish.compile(digits.model, TARGET, calibration=batches(), passes=[QuantizeInt8()], backend=Untimed())
    again = planish.compile(digits.model, TARGET, calibration=[*batches()], passes=[QuantizeInt8()], backend=Untimed())
    x = digits.test[0][:5]
    assert torch.equal(once.run(x), again.run(x))


def test_nothing_but_model_and_target_is_needed() -> None:
    model = Cnn().eval()
    model.example_input_array = torch.randn(1, 3, 8, 8)
    result = planish.compile(model, TARGET)
    assert result.run(torch.randn(5, 3, 8, 8)).shape == (5, 5)
    if any(step.compression == "quantize-int8" for step in result.report.steps):
        assert "No calibration data" in result.report.notes[0]


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Softmax(1)), case("recurrent").model])
def test_a_model_that_nothing_can_be_gained_on_is_lowered_as_it_is(model: nn.Module) -> None:
    x = torch.randn(3, 6, 4)
    result = planish.compile(model.eval(), TARGET, x)
    with torch.no_grad():
        torch.testing.assert_close(result.run(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("passes", [[], [QuantizeInt8()]], ids=["float", "int8"])
def test_outputs_come_in_the_structure_of_the_model(passes: list[planish.Pass]) -> None:
    pair = (torch.randn(4, 4), torch.randn(4, 4))
    model = Several().eval()
    result = planish.compile(model, TARGET, (pair,), passes=passes, backend=Untimed())
    got = result.run(pair)
    assert set(got) == {"total", "parts"}
    assert isinstance(got["parts"], tuple) and isinstance(got["parts"][1], list)
    with torch.no_grad():
        torch.testing.assert_close(got["total"], model(pair)["total"], rtol=0.1, atol=0.1)


def test_a_transformer_takes_keywords_and_returns_its_own_output_class(transformers: Any) -> None:
    found = case("bert")
    result = planish.compile(found.model, TARGET, found.inputs.kwargs, passes=[])
    got = result.run(**found.inputs.kwargs)
    with torch.no_grad():
        expected = found.model(**found.inputs.kwargs)
    assert type(got) is type(expected)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_an_exported_program_and_a_program_compile_as_the_model_does() -> None:
    model, x = Cnn().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        expected = model(x)
    for given in (exported, planish.compile(model, TARGET, x, passes=[]).program):
        result = planish.compile(given, TARGET, passes=[])
        torch.testing.assert_close(result.run(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(registry().profiles))
def test_every_shipped_target_takes_a_small_network(target: str) -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3)).eval()
    x = torch.randn(1, 16, 8, 8)
    result = planish.compile(model, target, x)
    with torch.no_grad():
        torch.testing.assert_close(result.run(x), model(x), rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------- never slower, with scripted times


def test_a_slower_pass_of_the_plan_is_undone_and_the_float_artifact_returned() -> None:
    backend = FakeBackend(latency_of=lambda program: 2.0 if is_quantized(program) else 1.0, quantizes=True)
    result = planish.compile(Cnn().eval(), TARGET, torch.randn(2, 3, 8, 8), backend=backend)
    step = result.report.steps[-1]
    assert (step.compression, step.outcome) == ("quantize-int8", "undone")
    assert "1 -> 2 ms measured" in step.verdict
    assert not is_quantized(result.program)
    assert [kept["name"] for kept in result.artifact.manifest.plan] == ["erase-no-ops", "fold-batch-norm"]
    assert result.report.result == result.report.baseline


def test_int8_for_a_device_that_is_not_here_is_judged_by_estimates_that_say_so() -> None:
    result = planish.compile(Cnn().eval(), "jetson-orin", torch.randn(2, 3, 8, 8), backend="onnx")
    step = next(step for step in result.report.steps if step.compression == "quantize-int8")
    for figures in (step.before, step.after):
        assert figures and figures.latency and figures.latency.source == "estimated"
    assert "estimated" in step.verdict and "measured" not in step.verdict


def test_a_budget_that_is_not_met_is_told() -> None:
    result = planish.compile(
        Cnn().eval(), TARGET, torch.randn(2, 3, 8, 8), budget=Budget(size_mb=1e-6, latency_ms=1e-9, memory_mb=1e-6)
    )
    for name in ("size_mb", "latency_ms", "memory_mb"):
        assert [note for note in result.report.notes if "Budget not met" in note and name in note], name


def test_a_backend_that_computes_something_else_never_ships(tmp_path: Path) -> None:
    backend = FakeBackend(damage=0.1)
    with pytest.raises(VerificationError, match="artifact"):
        planish.compile(nn.Linear(4, 3), TARGET, torch.randn(2, 4), backend=backend, output=tmp_path / "a")
    assert [*tmp_path.iterdir()] == []


@dataclasses.dataclass(frozen=True)
class Wrong(Scale):
    """Says that it is exact, and is not."""

    name = "wrong"
    exact = True
    factor: float = 0.5


def test_a_pass_that_says_it_is_exact_and_is_not_never_ships() -> None:
    x = torch.randn(2, 4)
    for passes in ([Wrong()], [Scale(), Wrong()]):
        with pytest.raises(VerificationError):
            planish.compile(nn.Linear(4, 3), TARGET, x, backend=FakeBackend(), passes=passes)


def test_requested_passes_are_kept_with_the_figures() -> None:
    result = planish.compile(nn.Linear(4, 3), TARGET, torch.randn(2, 4), backend=FakeBackend(), passes=[Scale()])
    assert [step.outcome for step in result.report.steps] == ["kept on request"]
    assert scaled(result.program) == 1


def test_a_backend_that_cannot_lower_leaves_nothing_behind(tmp_path: Path) -> None:
    backend = FakeBackend(failure=LoweringError("Replace it", component="fake"))
    with pytest.raises(LoweringError, match="Replace it"):
        planish.compile(nn.Linear(4, 3), TARGET, torch.randn(2, 4), backend=backend, output=tmp_path / "a")
    assert [*tmp_path.iterdir()] == []


def test_an_artifact_that_cannot_run_here_is_told_in_the_report() -> None:
    backend = FakeBackend(runs=False, timed=False)
    result = planish.compile(nn.Linear(4, 3), TARGET, torch.randn(2, 4), backend=backend, passes=[])
    assert "The artifact was not run: no such device here." in result.report.notes
    assert result.report.errors == []
