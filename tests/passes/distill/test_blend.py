"""Mixtures of rows: what they are made of, that the teacher answers them, and what does not mix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.training_data import Batch, TrainingData
from planish.passes.distill.blend import blended
from planish.passes.distill.distill import Distill
from planish.passes.distill.losses import Decoupled, HardLabels, SoftTargets
from tests.passes.nets import profile, traced


@pytest.mark.parametrize("seed", range(6))
def test_each_row_is_its_own_and_one_other(seed: int) -> None:
    """One-hot rows show what they were made of."""
    torch.manual_seed(seed)
    rows = torch.eye(5).reshape(5, 5, 1, 1).expand(5, 5, 8, 8)
    mixed = blended(Batch(Inputs((rows,)), torch.arange(5)))
    assert mixed.labels is None
    (found,) = mixed.inputs.args
    torch.testing.assert_close(found.sum(1), torch.ones(5, 8, 8))
    assert torch.all((found > 0).any((2, 3)).sum(1) <= 2)
    assert not torch.equal(found, rows)


def test_numbers_of_all_inputs_are_mixed_alike_and_the_others_stay() -> None:
    torch.manual_seed(0)
    first, tokens, table = torch.randn(6, 4), torch.arange(6), torch.randn(3, 3)
    mixed = blended(Batch(Inputs((first, 2 * first), {"tokens": tokens, "table": table})))
    own, other = mixed.inputs.args
    torch.testing.assert_close(other, 2 * own)
    assert mixed.inputs.kwargs["tokens"] is tokens and mixed.inputs.kwargs["table"] is table


def test_tokens_alone_do_not_mix() -> None:
    with pytest.raises(UserError, match="no input of this model has rows of real numbers"):
        blended(Batch(Inputs((torch.ones(4, 3, dtype=torch.int64),))))


def test_student_and_teacher_see_the_same_mixtures() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(32, 6)
    seen: list[Tensor] = []

    def teacher(batch: Tensor) -> Any:
        seen.append(batch)
        return net(batch)

    program = traced(net, x[:2])
    context = Context(
        profile(), None, Calibration([Inputs((x[:2],))], "given"), train=TrainingData([(x, torch.arange(32) % 3)])
    )
    taught = Distill(teacher, losses=[SoftTargets()], steps=3, blended=True, diagnosis=False).run(program, context)
    assert len(seen) == 3 and not any(torch.equal(batch, x) for batch in seen)
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(taught(x), program(x), rtol=1e-4, atol=1e-4)  # it was its own teacher


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"losses": (SoftTargets(), HardLabels(weight=0.1))}, "Leave HardLabels out"),
        ({"losses": Decoupled()}, "Leave Decoupled out"),
        ({"losses": SoftTargets(), "cache": "folder"}, "Leave cache out"),
        ({"losses": SoftTargets(), "curriculum": 0.5}, "Leave curriculum out"),
    ],
)
def test_what_needs_labels_or_rows_that_come_again_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Distill(blended=True, epochs=1, **options)
    Distill(blended=True, epochs=1, losses=(SoftTargets(), HardLabels(weight=0), HardLabels(source="teacher")))
