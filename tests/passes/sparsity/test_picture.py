from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from planish.compiler.calibration import Calibration
from planish.compiler.errors import MissingDependency, UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.verify import snr_db
from planish.passes.sparsify import Sparsify
from planish.passes.sparsity.layers import Layer, find_layers
from planish.passes.sparsity.patterns import Blocks
from planish.passes.sparsity.picture import BAR, FULL_DB, INK, MARGIN, MASK, NAME, ROW, draw_masks
from planish.passes.sparsity.ratios import same_for_all
from planish.passes.sparsity.sensitivity import sensitivities
from planish.passes.sparsity.walk import weight_of
from tests.passes.nets import traced
from tests.passes.test_sparsify import situation

X = torch.randn(8, 32)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def both() -> tuple[Program, Program]:
    dense = traced(net(), X)
    return dense, Sparsify(pattern="unstructured", ratio=0.75, scope="layer").run(dense, situation())


def test_the_picture_shows_each_mask_and_the_magnitude_that_is_left(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures are drawn with pillow")
    dense, sparse = both()
    path = draw_masks(sparse, tmp_path / "masks.png", dense)
    pixels = np.asarray(image.open(path))
    assert pixels.shape[0] == 3 * ROW + 2 * MARGIN and [*tmp_path.iterdir()] == [path]
    left = NAME + 2 * MARGIN
    shown = pixels[MARGIN : MARGIN + 32, left : left + 32, 0]
    kept = (sparse.state_dict()["0.weight"] != 0).numpy()
    assert np.array_equal(shown == 0, kept) and np.array_equal(shown == 255, ~kept)
    start = left + MASK[0] + MARGIN
    inked = int((pixels[MARGIN + 8, start:] == INK).all(1).sum())
    share = float(sparse.state_dict()["0.weight"].abs().sum() / dense.state_dict()["0.weight"].abs().sum())
    assert inked == pytest.approx(200 * share, abs=2)


def test_the_pass_draws_the_picture_and_says_where_and_which_layers_cost_most(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures are drawn with pillow")
    dense, path = traced(net(), X), tmp_path / "masks.png"
    told = situation()
    told.calibration = Calibration([Inputs((X,))], "given")
    sparse = Sparsify(pattern="unstructured", ratio=0.75, picture=str(path)).run(dense, told)
    assert str(path) in told.notes[0]
    alone = {each.layer: each for each in sensitivities(dense, Blocks(), shares_of(sparse), [Inputs((X,))])}
    worst = min(alone.values(), key=lambda each: each.snr_db or 0.0)
    assert f"the worst: {worst.layer} {worst.snr_db:.1f} dB" in told.notes[0]
    pixels = np.asarray(image.open(path))
    start = NAME + MASK[0] + BAR + 4 * MARGIN
    for row, layer in enumerate(("0", "2", "4")):
        inked = int((pixels[MARGIN + ROW * row + 8, start:] == INK).all(1).sum())
        assert inked == pytest.approx(BAR * (alone[layer].snr_db or 0.0) / FULL_DB, abs=3)


def shares_of(sparse: Program) -> dict[Layer, float]:
    """The zeros that the layers of ``sparse`` have."""
    return {layer: float((weight_of(sparse, layer) == 0).double().mean()) for layer in find_layers(sparse)[0]}


def test_a_picture_in_a_folder_that_is_not_there_is_told_before_any_work(tmp_path: Path) -> None:
    sparsify = Sparsify(pattern="unstructured", ratio=0.75, picture=str(tmp_path / "no" / "masks.png"))
    with pytest.raises(UserError, match=r"Make the folder of Sparsify\(picture="):
        sparsify.run(traced(net(), X), situation())


def test_where_pillow_is_missing_the_pass_says_so_and_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    told = situation()
    told.calibration = Calibration([Inputs((X,))], "given")
    Sparsify(pattern="unstructured", ratio=0.75, picture=str(tmp_path / "masks.png")).run(traced(net(), X), told)
    assert "No picture was drawn" in told.notes[0] and "planish[plot]" in told.notes[0]
    assert [*tmp_path.iterdir()] == []


def test_a_dense_program_gives_a_picture_that_says_so(tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="pictures are drawn with pillow")
    assert draw_masks(traced(net(), X), tmp_path / "masks.png").stat().st_size > 0


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependency, match=r"planish\[plot\]"):
        draw_masks(traced(net(), X), tmp_path / "masks.png")


def test_each_layer_is_made_sparse_alone_and_the_worst_comes_first() -> None:
    model = net()
    program = traced(model, X)
    shares = same_for_all(find_layers(program)[0], 0.75)
    rows = sensitivities(program, Blocks(), shares, [Inputs((X,))], lambda run: float(run(X)[0, 0]))
    assert {row.layer for row in rows} == {"0", "2", "4"}
    assert [row.snr_db for row in rows] == sorted(row.snr_db or 0.0 for row in rows)
    for row in rows:
        alone = net()
        alone.load_state_dict(model.state_dict())
        with torch.no_grad():
            weight = alone.get_submodule(row.layer).weight
            assert isinstance(weight, torch.Tensor)
            smallest = weight.abs() <= weight.abs().flatten().kthvalue(round(0.75 * weight.numel())).values
            assert row.kept == pytest.approx(float((weight * ~smallest).abs().sum() / weight.abs().sum()))
            weight[smallest] = 0
            assert row.snr_db == pytest.approx(snr_db(model(X), alone(X)), abs=0.01)
            assert row.metric == pytest.approx(float(alone(X)[0, 0]), abs=1e-5)
