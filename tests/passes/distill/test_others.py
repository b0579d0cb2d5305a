"""Two students at once, several teachers, diagnosis, rankings in a batch, outputs that are no classes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import planish
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.training_data import Batch, TrainingData
from planish.passes.distill.diagnosis import Diagnosis, diagnose
from planish.passes.distill.distill import Distill
from planish.passes.distill.losses import Exits, HardLabels, Ranking, SoftTargets, Values
from planish.passes.distill.mutual import learn_mutually
from planish.passes.distill.outputs import Seen, predictions
from planish.passes.distill.rows import row_losses
from planish.passes.distill.teacher import Teacher, Teachers
from tests.passes.distill.students import KEEN, Sure, distilled, student
from tests.passes.training.tasks import FEATURES, accuracy, assert_same_tensors, data, examples

X, Y = examples(8)
BATCH = Batch(Inputs((X,)), Y)


def test_two_students_learn_from_each_other_and_are_left_as_they_were() -> None:
    first, second = student(24), student(16)
    before = [program.copy() for program in (first, second)]
    trained, other = learn_mutually(first, second, data(), KEEN)
    assert accuracy(trained.program) > 0.6 and accuracy(other) > 0.6
    assert len(trained.history.records[-1].losses) == 4
    for program, kept in zip((first, second), before, strict=True):
        assert_same_tensors(program, kept)


# ---------------------------------------------------------------------- several teachers


def test_answers_of_several_teachers_are_averaged_by_weight() -> None:
    x = torch.zeros(2, FEATURES)
    teachers = [Teacher(lambda x, scale=scale: scale * x[:, :5], Inputs((x,))) for scale in (1.0, 4.0)]
    answer, _ = Teachers(teachers, (3.0, 1.0), -100)(BATCH)
    torch.testing.assert_close(answer, X[:, :5] * (3 * 1 + 1 * 4) / 4)
    answer, _ = Teachers(teachers, "mean", -100)(BATCH)
    torch.testing.assert_close(answer, X[:, :5] * 2.5)


def test_confidence_weighs_teachers_row_by_row_by_their_losses() -> None:
    right, wrong = 2.0 * X[:, :5], -1.0 * X[:, :5]
    teachers = [Teacher(lambda x, answer=answer: answer, BATCH.inputs) for answer in (right, wrong)]
    answer, _ = Teachers(teachers, "confidence", -100)(BATCH)
    for row in range(8):
        losses = [F.cross_entropy(each[row], Y[row]).item() for each in (right, wrong)]
        share = 1 / (1 + math.exp(losses[0] - losses[1]))
        torch.testing.assert_close(answer[row], share * right[row] + (1 - share) * wrong[row])


def test_teachers_of_different_shapes_are_told() -> None:
    teachers = [Teacher(lambda x, width=width: x[:, :width], BATCH.inputs) for width in (4, 5)]
    with pytest.raises(UserError, match=r"outputs have one shape: they have \[8, 4\], \[8, 5\]"):
        Teachers(teachers, "mean", -100)(BATCH)


@pytest.mark.parametrize(
    ("outputs", "labels"),
    [(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])), (torch.randn(4, 3), None), (torch.randn(4, 2), torch.randn(4, 2)),
     (torch.randn(4, 6, 3), torch.randint(0, 3, (4, 6)))],
)  # fmt: skip
def test_every_row_has_a_loss_of_its_own(outputs: Tensor, labels: Tensor | None) -> None:
    found = row_losses(outputs, labels)
    alone = [
        row_losses(outputs[row : row + 1], labels if labels is None else labels[row : row + 1]) for row in range(4)
    ]
    assert found.shape == (4,)
    torch.testing.assert_close(found, torch.cat(alone))


# ---------------------------------------------------------------------- diagnosis


def test_the_diagnosis_has_the_figures_of_both_models_and_suggests_a_temperature() -> None:
    found = diagnose(Teacher(lambda x: 6 * x[:, :5], BATCH.inputs), student(), data(24))
    assert found.rows == 192 and found.teacher == 1.0
    x, y = examples()
    assert found.student == pytest.approx((student()(x).argmax(1) == y).float().mean().item())
    assert found.trained is not None and found.trained > (found.student or 0)
    soft = (6 * x[:, :5] / 4).softmax(1)
    expected = -(soft * soft.log()).sum(1).mean().item() / math.log(5)
    assert found.entropy is not None and found.entropy[4.0] == pytest.approx(expected, rel=1e-4)
    shares = [*found.entropy.values()]
    assert shares == sorted(shares) and found.entropy[found.temperature or 0] >= 0.5
    with Console(record=True, width=120) as console:
        console.print(found.table())
    told = console.export_text()
    assert "(suggested)" in told and "100.0%" in told


def test_a_teacher_that_is_worse_than_the_student_is_told() -> None:
    found = Diagnosis(10, teacher=0.3, student=0.5, trained=0.6, entropy={1.0: 0.1, 2.0: 0.2})
    assert found.temperature == 2.0 and "worse than the student" in found.sentences()[-1]


def test_without_class_labels_there_is_no_diagnosis_and_the_notes_say_so() -> None:
    settings = Distill(Sure(), losses=(SoftTargets(),), training=replace(KEEN, steps=1))
    _, notes = distilled(student(), settings, train=TrainingData([X]), metric=False)
    assert notes[0].startswith("The teacher was not diagnosed")


# ---------------------------------------------------------------------- outputs


def test_outputs_without_labels_are_rows_of_scores_over_their_classes() -> None:
    images = torch.randn(2, 3, 4, 5)
    (found,) = predictions(Seen(images, images + 1, Batch(Inputs((images,)))), "SoftTargets")
    torch.testing.assert_close(found.student, images.movedim(1, -1).reshape(40, 3))
    assert found.classes and found.labels is None


def test_ignored_tokens_are_left_out_and_a_batch_of_nothing_else_has_no_loss() -> None:
    scores = torch.randn(2, 4, 3, requires_grad=True)
    labels = torch.tensor([[0, 1, -100, -100], [2, -100, -100, -100]])
    (found,) = predictions(Seen(scores, scores.detach(), Batch(Inputs((scores,)), labels)), "SoftTargets")
    assert found.labels is not None and found.labels.tolist() == [0, 1, 2]
    torch.testing.assert_close(found.student, torch.cat([scores[0, :2], scores[1, :1]]))
    nothing = Seen(scores, scores.detach(), Batch(Inputs((scores,)), torch.full((2, 4), -100)))
    loss = SoftTargets().value(nothing)
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and not scores.grad.any()


def test_boxes_and_classes_of_a_detector_are_both_learnt() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.boxes, self.classes = nn.Linear(FEATURES, 12), nn.Linear(FEATURES, 15)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"boxes": self.boxes(x).view(-1, 3, 4), "classes": self.classes(x).view(-1, 3, 5)}

    teacher, x = Detector(), examples()[0]
    batches = [(x, {"boxes": teacher(x)["boxes"].detach(), "classes": teacher(x)["classes"].argmax(-1)})]
    torch.manual_seed(9)
    start = planish.trace(Detector(), x)
    settings = Distill(teacher, losses=(SoftTargets(), HardLabels()), training=replace(KEEN, steps=150))
    trained, _ = distilled(start, settings, train=TrainingData(batches), metric=False)
    found, wanted = trained(x), teacher(x)
    assert F.mse_loss(found["boxes"], wanted["boxes"]) < 0.1 * F.mse_loss(start(x)["boxes"], wanted["boxes"])
    assert (found["classes"].argmax(-1) == wanted["classes"].argmax(-1)).float().mean() > 0.9


def test_regression_is_learnt_from_the_teacher() -> None:
    x, _ = examples()
    settings = Distill(lambda x: x[:, :5].tanh(), losses=(Values(),), training=replace(KEEN, steps=120))
    trained, _ = distilled(student(), settings, train=TrainingData([x]), metric=False)
    assert F.mse_loss(trained(x), x[:, :5].tanh()) < 0.1


def test_two_towers_learn_to_rank_all_items_of_a_batch() -> None:
    class Towers(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.query, self.item = nn.Linear(10, width, bias=False), nn.Linear(10, width, bias=False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.query(x[:, :10]), self.item(x[:, 10:])

    torch.manual_seed(4)
    teacher, start = Towers(16), planish.trace(Towers(8), torch.zeros(2, FEATURES))

    def agreement(model: object) -> float:
        x, _ = examples(64)
        ours, theirs = ((q @ i.T) for q, i in (model(x), teacher(x)))  # type: ignore[operator]
        return (ours.argmax(1) == theirs.argmax(1)).float().mean().item()

    settings = Distill(teacher, losses=(Ranking(in_batch=True),), training=replace(KEEN, steps=150), diagnosis=False)
    trained, _ = distilled(start, settings, metric=False)
    assert agreement(trained) > agreement(start) + 0.3


def test_a_loss_that_cannot_read_the_outputs_says_what_it_needs() -> None:
    seen = Seen(X, X, BATCH)
    with pytest.raises(UserError, match="two embeddings"):
        Ranking(in_batch=True).value(seen)
    with pytest.raises(UserError, match=r"scores \[queries, items\] for Ranking, not \[8\]"):
        Ranking().value(Seen(X[:, 0], X[:, 0], BATCH))
    with pytest.raises(UserError, match="the model returns one"):
        Exits().value(seen)
