from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.training_data import Batch
from planish.passes.distill.cache import KEY, CachedTeacher, row_keys
from planish.passes.distill.distill import Distill
from planish.passes.distill.feature_losses import Features
from planish.passes.distill.logits import top_k
from planish.passes.distill.losses import SoftTargets
from planish.passes.distill.teacher import Teacher
from tests.passes.distill.students import FAST, Mlp, Sure, distilled, student
from tests.passes.training.tasks import FEATURES, ROWS, assert_same_tensors, examples

SETTINGS = Distill(Sure(), losses=(SoftTargets(),), training=replace(FAST, steps=13), diagnosis=False)


def batch(rows: slice) -> Batch:
    x, y = examples()
    return Batch(Inputs((x[rows],)), y[rows])


def cached(folder: Path, given: object = None, top: int | None = None) -> CachedTeacher:
    return CachedTeacher(Teacher(given or Sure(), Inputs((torch.zeros(2, FEATURES),))), str(folder), top)


def test_training_with_a_cache_ends_as_without_and_asks_for_every_row_once(tmp_path: Path) -> None:
    without, _ = distilled(student(), SETTINGS, metric=False)
    for computed in (ROWS, 32):  # the second compilation asks once, for the structure of the outputs
        with_cache, notes = distilled(student(), replace(SETTINGS, cache=str(tmp_path)), metric=False)
        assert_same_tensors(with_cache, without)
        assert f"asked for {13 * 32} rows and computed {computed} of them" in notes[-1]


def test_rows_are_found_in_any_order_and_batch(tmp_path: Path) -> None:
    teacher = cached(tmp_path)
    teacher(batch(slice(0, 50)))
    x, _ = examples()
    order = torch.tensor([7, 3, 49, 3])
    answers, _ = teacher(Batch(Inputs((x[order],))))
    assert torch.equal(answers, Sure()(x[order])) and teacher.computed == 50


def test_a_teacher_with_other_weights_has_a_cache_of_its_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Mlp().eval()
        answers, _ = cached(tmp_path, model)(batch(slice(0, 8)))
        torch.testing.assert_close(answers, model(examples()[0][:8]))
    assert len([*tmp_path.iterdir()]) == 2


def test_several_outputs_keep_their_structure(tmp_path: Path) -> None:
    def teach(x: Tensor) -> dict[str, Any]:
        return {"a": x[:, :3], "b": (x.view(-1, 4, 5),)}

    for _ in range(2):
        answers, _ = cached(tmp_path, teach)(batch(slice(0, 6)))
        expected = teach(examples()[0][:6])
        assert torch.equal(answers["a"], expected["a"]) and torch.equal(answers["b"][0], expected["b"][0])


def test_only_the_top_classes_are_kept_where_that_is_shorter(tmp_path: Path) -> None:
    def teach(x: Tensor) -> Tensor:
        return 4 * x  # twenty classes

    teacher = cached(tmp_path, teach, top=3)
    answers, _ = teacher(batch(slice(0, 10)))
    torch.testing.assert_close(answers, top_k(teach(examples()[0][:10]), 3), rtol=1e-5, atol=1e-5)
    (folder,) = tmp_path.iterdir()
    assert (folder / "rows").stat().st_size == 10 * 2 * 3 * 4 and (folder / "keys").stat().st_size == 10 * KEY


@pytest.mark.parametrize(("file", "cut"), [("rows", 5), ("keys", 7), ("rows", 25)])
def test_what_a_killed_run_has_half_written_is_computed_again(tmp_path: Path, file: str, cut: int) -> None:
    cached(tmp_path)(batch(slice(0, 10)))
    (folder,) = tmp_path.iterdir()
    path = folder / file
    path.write_bytes(path.read_bytes()[:-cut])
    teacher = cached(tmp_path)
    teacher(batch(slice(0, 1)))
    answers, _ = teacher(batch(slice(0, 12)))
    assert torch.equal(answers, Sure()(examples()[0][:12]))
    assert (folder / "rows").stat().st_size == 12 * 5 * 4


def test_keys_tell_rows_apart_by_all_their_inputs() -> None:
    ids, mask, scale = torch.tensor([[1, 2], [1, 2], [3, 4]]), torch.tensor([[1, 1], [1, 0], [1, 1]]), torch.ones(1)
    keys = row_keys(Inputs((ids, mask)))
    assert len(set(keys)) == 3 and row_keys(Inputs((ids[1:], mask[1:]))) == keys[1:]
    assert row_keys(Inputs((ids,)))[0] == row_keys(Inputs((ids,)))[1]
    assert row_keys(Inputs((ids, scale))) != row_keys(Inputs((ids, scale * 2)))


def test_features_cannot_be_cached(tmp_path: Path) -> None:
    settings = replace(SETTINGS, teacher=Mlp(), losses=(Features(pairs=("first",)),), cache=str(tmp_path))
    with pytest.raises(UserError, match=r"Leave out Distill\(cache=…\)"):
        distilled(student(), settings)
    with pytest.raises(UserError, match="more than real numbers for each row"):
        cached(tmp_path, lambda x: x.mean())(batch(slice(0, 4)))
