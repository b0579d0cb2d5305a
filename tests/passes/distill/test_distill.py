from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planish
from planish.compiler.contracts import Budget, Pass, Situation
from planish.compiler.errors import UserError
from planish.compiler.plan import Plan, PlannedPass, make_plan
from planish.compiler.rules import verify
from planish.passes.distill.distill import Distill
from planish.passes.distill.feature_losses import Features, Layers
from planish.passes.distill.losses import Decoupled, Dist, Exits, HardLabels, Loss, Ranking, SoftTargets, Values
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.quantize_int8 import QuantizeInt8
from planish.passes.training.settings import Training
from tests.passes.distill.students import FAST, KEEN, Forget, Mlp, Sure, context, distilled, student
from tests.passes.nets import SCHEME, profile
from tests.passes.training.tasks import FEATURES, ROWS, accuracy, assert_same_tensors, examples, loader

SOFT = (SoftTargets(temperature=2.0),)


def test_a_student_learns_from_its_teacher_alone() -> None:
    start = student()
    trained, notes = distilled(start, Distill(Sure(), losses=SOFT, training=replace(FAST, steps=150)))
    verify(trained, "distill")
    assert accuracy(start) < 0.4 and accuracy(trained) > 0.85
    assert any(note.startswith("Trained 150 steps") for note in notes)


@pytest.mark.parametrize(
    "loss", [SoftTargets(), SoftTargets(reverse=True), SoftTargets(top_k=2), HardLabels(), HardLabels(source="teacher"),
             Values(), Decoupled(others=2.0), Dist(), Ranking(), Ranking(how="pairwise"), Ranking(how="margin")],
    ids=lambda loss: f"{type(loss).__name__}-{loss}"[:60],
)  # fmt: skip
def test_every_loss_on_outputs_trains_a_better_student(loss: Loss) -> None:
    start = student()
    settings = Distill(Sure(), losses=(loss,), training=KEEN, diagnosis=False)
    trained, _ = distilled(start, settings, metric=False)
    assert accuracy(trained) > accuracy(start) + 0.2


def test_a_student_that_is_its_teacher_stays_as_it_is() -> None:
    start = student()
    settings = Distill(losses=(SoftTargets(), Values()), training=replace(FAST, weight_decay=0.0), diagnosis=False)
    trained, _ = distilled(start, settings, metric=False)
    for one, other in zip(trained.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_model_before_any_pass_teaches_by_default_and_what_inner_passes_lose_is_won_back() -> None:
    whole, _ = distilled(student(32), Distill(Sure(), losses=SOFT, training=replace(FAST, steps=150)))
    forgetful = Forget(0.6).run(whole, context())
    settings = Distill(inner=(Forget(0.6),), losses=SOFT, training=replace(FAST, steps=80))
    recovered, _ = distilled(whole, settings)
    assert accuracy(forgetful) < accuracy(whole) - 0.1
    assert accuracy(recovered) > accuracy(whole) - 0.05


def test_inner_passes_that_round_run_after_the_training_with_what_they_require() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 18, 5)).eval()
    x, y = examples()
    source = planish.compiler.training_data.TrainingData([(x[:64, None], y[:64]), (x[64:128, None], y[64:128])])
    program = planish.trace(model, x[:2, None])
    given = context(source, metric=False)
    given.calibration = planish.compiler.calibration.from_data(
        [x[:32, None]], planish.compiler.calibration.InputForm(("input",), 1)
    )
    settings = Distill(inner=(Forget(), QuantizeInt8()), losses=(Values(),), training=KEEN, diagnosis=False)
    rounded = settings.run(program, given)
    quantized = [node for node in rounded.calls() if "quantize_per" in str(node.target)]
    assert quantized and not [*rounded.calls(torch.ops.aten.batch_norm.default)]
    found, lost, expected = (each(x[:128, None]) for each in (rounded, Forget().run(program, given), program))
    assert (found - expected).square().mean() < 0.5 * (lost - expected).square().mean()


# ---------------------------------------------------------------------- teachers


class Artifact:
    def run(self, x: Tensor) -> Tensor:
        return Sure()(x)


def test_anything_callable_teaches_the_same() -> None:
    x = torch.zeros(2, FEATURES)
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(Sure(), (x,), dynamic_shapes=({0: batch[0]},))
    teachers = [Sure(), planish.trace(Sure(), x), exported, Sure().forward, Artifact(), [Sure(), Sure()]]
    settings = [Distill(teacher, losses=SOFT, training=replace(FAST, steps=5), diagnosis=False) for teacher in teachers]
    first, *others = (distilled(student(), each, metric=False)[0] for each in settings)
    for other in others:
        assert_same_tensors(other, first)


def test_the_teacher_of_the_compilation_is_taken_where_the_pass_has_none() -> None:
    settings = Distill(losses=SOFT, training=replace(FAST, steps=5), diagnosis=False)
    given, _ = distilled(student(), settings, teacher=Sure(), metric=False)
    own, _ = distilled(student(), replace(settings, teacher=Sure()), metric=False)
    assert_same_tensors(given, own)


def test_a_teacher_is_neither_trained_nor_put_into_another_mode() -> None:
    teacher = nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distilled(student(), Distill(teacher, losses=SOFT, training=FAST))
    assert teacher.training and all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -3 * x[:, :5]


@pytest.mark.parametrize("mixing", ["confidence", (1.0, 0.0)])
def test_of_several_teachers_the_one_that_is_right_is_heard(mixing: Any) -> None:
    settings = Distill([Sure(), Wrong()], losses=SOFT, mixing=mixing, training=replace(FAST, steps=100))
    heard, _ = distilled(student(), settings)
    averaged, _ = distilled(student(), replace(settings, mixing="mean"))
    assert accuracy(heard) > 0.8 > accuracy(averaged)


def test_deeper_exits_teach_earlier_ones() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exit = nn.Linear(FEATURES, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.exit(x), 3 * x[:, :5]

    program = planish.trace(Early(), torch.zeros(2, FEATURES))
    settings = Distill(losses=(Exits(),), training=replace(FAST, steps=60))
    trained, _ = distilled(program, settings, metric=False)
    x, y = examples()
    assert (trained(x)[0].argmax(1) == y).float().mean() > 0.8


# ---------------------------------------------------------------------- curriculum, resuming


def test_a_curriculum_begins_with_the_rows_that_the_teacher_finds_easy_and_ends_with_all() -> None:
    counts: list[int] = []
    worst: list[float] = []

    class Watching(HardLabels):
        def value(self, seen: Any) -> Tensor:
            counts.append(seen.batch.rows)
            worst.append(
                float(torch.nn.functional.cross_entropy(seen.teacher, seen.batch.labels, reduction="none").max())
            )
            return super().value(seen)

    training = replace(FAST, steps=12)
    settings = Distill(Sure(), losses=(Watching(), SoftTargets()), training=training, curriculum=0.5, diagnosis=False)
    distilled(student(), settings, metric=False)
    assert counts[0] == 16 and counts[6:] == [32] * 6 and counts[:7] == sorted(counts[:7])
    assert max(worst[:2]) < max(worst[6:])


def test_distillation_that_was_killed_ends_as_it_would_have(tmp_path: Path) -> None:
    class Dying(nn.Module):
        left = 10**9

        def forward(self, x: Tensor) -> Tensor:
            Dying.left -= 1
            if Dying.left < 0:
                raise KeyboardInterrupt
            return 3 * x[:, :5]

    losses = (SoftTargets(), Features(pairs=(("first", "second"),)))
    teacher = Mlp(24)
    settings = Distill([Dying().forward, Sure()], losses=SOFT, training=FAST, curriculum=0.8, diagnosis=False)
    for chosen in (settings, Distill(teacher, losses=losses, training=FAST, diagnosis=False)):
        whole, _ = distilled(student(), chosen)
        kept = replace(
            chosen, training=replace(FAST, checkpoint=str(tmp_path / type(chosen.teacher).__name__), checkpoint_every=1)
        )
        Dying.left = 11
        if chosen is settings:
            with pytest.raises(KeyboardInterrupt):
                distilled(student(), kept)
        Dying.left = 10**9
        assert_same_tensors(distilled(student(), kept)[0], whole)


# ---------------------------------------------------------------------- plans


def find_pass(name: str) -> type[Pass]:
    passes: dict[str, type[Pass]] = {"distill": Distill, "forget": Forget, "quantize-int8": QuantizeInt8}
    return passes[name]


def test_a_plan_with_passes_in_passes_round_trips_through_toml(tmp_path: Path) -> None:
    on_outputs = (SoftTargets(temperature=2.0, weight=0.5, top_k=3), HardLabels(source="teacher"), Values())
    inside = (Features(pairs=(("a", "b"), ("c", "d")), how="angles"), Layers(layer_map=((0, 1), (1, 3)), hidden=0.5))
    losses = (*on_outputs, *inside, Decoupled(), Dist(), Ranking(how="pairwise"), Exits())
    inner = (Forget(0.25), Distill(inner=(QuantizeInt8(keep_float=("head",)),), minutes=3.5))
    settings = Distill(Sure(), losses=losses, inner=inner, mixing=(0.5, 0.5), curriculum=0.3, epochs=2)
    path = Plan((PlannedPass(settings, "Requested.", requested=True),)).save(tmp_path / "plan.toml")
    (step,) = Plan.load(path, find_pass)
    assert step.compression == settings and step.compression.teacher is None
    assert "Sure" not in path.read_text()


def test_the_plan_wraps_lossy_passes_where_there_is_data_to_train_on() -> None:
    program = student()
    known = (Forget, FoldBatchNorm, Distill, QuantizeInt8)
    situation = Situation(program, profile(), SCHEME, Budget(), trains=True)
    first, *others = make_plan(situation, known)
    assert isinstance(first.compression, Distill) and first.compression.inner == (Forget(),)
    assert [type(step.compression) for step in others] == [QuantizeInt8]
    without = make_plan(replace(situation, trains=False), known)
    assert [type(step.compression) for step in without] == [Forget, QuantizeInt8]
    assert without.left_out["distill"] == "There is no train data to win back what forget loses."
    assert "distill" not in make_plan(situation, (FoldBatchNorm, Distill, QuantizeInt8)).left_out


@pytest.mark.slow
def test_compile_trains_with_the_users_loader_and_reports_it(tmp_path: Path) -> None:
    model = Mlp(16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = Distill(inner=(Forget(),), training=KEEN)
    result = planish.compile(
        model, "x86-avx512-vnni", calibration=[examples()[0][:32]], metric=accuracy, passes=[settings], train=loader(),
        teacher=Sure(), output=tmp_path / "artifact",
    )  # fmt: skip
    assert accuracy(result.run) > 0.7
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    notes = next(step.notes for step in result.report.steps if step.compression == "distill")
    assert [note.split()[0] for note in notes] == ["On", "Entropy", "Trained"]


# ---------------------------------------------------------------------- what can be wrong


def test_without_data_to_train_on_nothing_runs() -> None:
    class Refuses(Forget):
        def run(self, program: Any, context: Any) -> Any:
            raise AssertionError

    given = replace(context(), train=None)
    with pytest.raises(UserError, match=r"Pass train=loader to planish\.compile"):
        Distill(inner=(Refuses(),)).run(student(), given)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Distill(losses=(SoftTargets(weight=-0.1),)), r"Give SoftTargets\(weight=…\) at least 0, not -0.1"),
        (lambda: Distill(losses=(HardLabels(weight=0),)), "at least one loss with a weight above 0"),
        (lambda: Distill(losses=(3,)), "Pass losses such as SoftTargets"),  # type: ignore[arg-type]
        (lambda: Distill(inner=(3,)), "Pass passes in Distill"),  # type: ignore[arg-type]
        (lambda: Distill(mixing="best"), "Give Distill"),
        (lambda: Distill(curriculum=2), "a share above 0"),
        (lambda: Distill(epochs=0), r"Give Training\(epochs=…\) a number above 0"),
        (lambda: SoftTargets(temperature=0), "a number above 0, not 0"),
        (lambda: Ranking(how="listwize"), "did you mean 'listwise'"),
        (lambda: Features(pairs=(("a", "b"),), how="cosin"), "did you mean 'cosine'"),
        (lambda: Features(), "pairs of names"),
        (lambda: Layers(layer_map="first"), "'uniform', 'last' or pairs"),
    ],
)
def test_wrong_options_are_told_when_they_are_given(make: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


class Narrow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :4]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            Distill(Narrow(), losses=SOFT),
            r"SoftTargets got float32 \[32, 5\] of the student and float32 \[32, 4\] of the teacher",
        ),
        (Distill(Mlp(), losses=(Features(pairs=("frist",)),)), "node or a module of the student.*did you mean 'first'"),
        (
            Distill(Mlp(), losses=(Features(pairs=(("first", "secnd"),)),)),
            "node or a module of the teacher.*did you mean 'second'",
        ),
        (Distill(Sure().forward, losses=(Features(pairs=("first",)),)), "a teacher that can be looked into"),
        (Distill(Mlp(), losses=(Layers(),)), "the student has no such attention"),
        (Distill(3), "Pass something callable as teacher"),
        (Distill([]), "at least one teacher"),
        (Distill([Sure(), Sure()], mixing=(1.0,)), "one weight of at least 0 for each of the 2 teachers"),
        (Distill(Sure(), losses=(Exits(),)), "Return several outputs"),
    ],
)
def test_models_that_do_not_fit_are_told(settings: Distill, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        distilled(student(), replace(settings, training=FAST, diagnosis=False))


@pytest.mark.parametrize(
    ("labels", "sentence"), [(torch.full((ROWS,), 5), "there is a 5"), (torch.full((ROWS,), -1), "there is a -1")]
)
def test_labels_out_of_range_are_told_before_an_epoch(labels: Tensor, sentence: str) -> None:
    x, _ = examples()
    source = planish.compiler.training_data.TrainingData([(x, labels)])
    with pytest.raises(UserError, match=sentence):
        distilled(student(), Distill(Sure(), training=FAST, diagnosis=False), train=source, metric=False)


def test_settings_are_short_to_write_and_print() -> None:
    settings = Distill(Sure(), losses=[SoftTargets(temperature=4, weight=0.7), HardLabels(weight=0.3)], epochs=10)
    assert settings.training == Training(epochs=10) and settings.teacher is not None
    assert settings == Distill(epochs=10) and "Sure" not in repr(settings)
