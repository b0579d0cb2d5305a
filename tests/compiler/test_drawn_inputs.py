from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.calibration import Calibration
from planish.compiler.drawn_inputs import draw_calibration
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.trace import trace
from tests.compiler.models import Cnn, case

aten = torch.ops.aten


def images(count: int) -> Tensor:
    """Smooth, brighter in one channel: like photographs, and unlike noise."""
    coarse = torch.randn(count, 3, 4, 4) * torch.tensor([1.5, 1.0, 0.5])[:, None, None]
    return (
        nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
        + torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    )


def trained_cnn() -> nn.Module:
    """A CNN whose batch norms have seen images."""
    model = Cnn().train()
    with torch.no_grad():
        for _ in range(60):
            model(images(16))
    return model.eval()


def distance(program: Program, inputs: Tensor) -> float:
    """How far the statistics at the batch norms are from the running ones, in plain loops."""
    values: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            if n.target is aten.batch_norm.default:
                values[n.name] = self.env[n.args[0]]  # type: ignore[index]
            return super().run_node(n)

    with torch.no_grad():
        Recorder(program.graph_module).run(inputs, enable_io_processing=False)
    total = 0.0
    for node in program.calls(aten.batch_norm.default):
        mean, variance = program.tensor(node.args[3]), program.tensor(node.args[4])
        assert mean is not None and variance is not None
        for channel in range(len(mean)):
            seen = values[node.name][:, channel]
            deviation = variance[channel].sqrt()
            total += float(((seen.mean() - mean[channel]) / deviation) ** 2 + (seen.std() / deviation - 1) ** 2)
    return total


def leaves(calibration: Calibration, index: int = 0) -> Tensor:
    return torch.cat([batch.leaves()[index] for batch in calibration])


def test_drawn_inputs_match_the_statistics_of_batch_norms_far_better_than_noise_does() -> None:
    program = trace(trained_cnn(), Inputs.of(torch.randn(2, 3, 16, 16)))
    calibration = draw_calibration(program, samples=32)
    drawn = leaves(calibration)
    assert drawn.shape == (32, 3, 16, 16) and torch.isfinite(drawn).all() and not drawn.requires_grad
    noise, matched, real = (distance(program, x) for x in (torch.randn(32, 3, 16, 16), drawn, images(32)))
    print(f"distance: noise {noise:.3f}, drawn {matched:.3f}, real images {real:.3f}")
    assert matched < noise / 10
    assert calibration.origin == "drawn so as to match the statistics of 2 batch norms"


def test_the_same_seed_draws_the_same_inputs_and_another_seed_others() -> None:
    program = trace(trained_cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))
    state = torch.random.get_rng_state()
    first, again, other = (leaves(draw_calibration(program, 4, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_drawing_leaves_the_program_as_it_was() -> None:
    program = trace(trained_cnn(), Inputs.of(torch.randn(2, 3, 8, 8))).train()
    before = {name: value.clone() for name, value in program.state_dict().items()}
    code = program.graph_module.code
    draw_calibration(program, 4)
    assert program.graph_module.code == code
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())
    assert all(parameter.grad is None for parameter in program.parameters())


def test_without_batch_norms_inputs_come_from_a_normal_distribution() -> None:
    program = trace(nn.Linear(64, 3), Inputs.of(torch.randn(2, 64)))
    calibration = draw_calibration(program, 40)
    drawn = leaves(calibration)
    assert drawn.shape[0] >= 40 and abs(drawn.mean()) < 0.1 and abs(drawn.std() - 1) < 0.1
    assert calibration.origin == "drawn from a normal distribution"
    assert sum(piece.batch_size for piece in calibration.samples(40)) == 40


def test_a_batch_norm_without_running_statistics_matches_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    assert "normal distribution" in draw_calibration(trace(model, Inputs.of(torch.randn(2, 4))), 4).origin


class Text(nn.Module):
    """Ids, positions in a table of their own, and a mask that no embedding reads."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4), nn.Embedding(3, 4)

    def forward(self, ids: Tensor, places: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        y = self.words(ids[:, 1:].contiguous().view(-1, 5)) + self.places(places.transpose(0, 1).long()).transpose(0, 1)
        result: Tensor = (y * mask[..., None]).sum(1) + self.words(lengths * 0 + 1)
        return result


def test_ids_are_drawn_from_all_rows_of_their_embedding_and_other_integers_keep_their_values() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    example = Inputs(
        (
            torch.zeros(2, 6, dtype=torch.int64),
            torch.zeros(2, 5, dtype=torch.int32),
            mask,
            torch.tensor([3, 4]),
        )
    )
    program = trace(Text(), example)
    calibration = draw_calibration(program, 32)
    ids, places, masks, lengths = (leaves(calibration, index) for index in range(4))
    assert set(ids.unique().tolist()) == {*range(7)} and set(places.unique().tolist()) == {*range(3)}
    assert (ids.dtype, places.dtype) == (torch.int64, torch.int32)
    assert torch.equal(masks, mask.repeat(16, 1)) and torch.equal(lengths, torch.tensor([3, 4]).repeat(16))
    for batch in calibration:
        assert batch.call(program).shape == (16, 4)


def test_a_fixed_batch_keeps_its_size() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.norm(x.reshape(3, 4))
            return result

    program = trace(Fixed().eval(), Inputs.of(torch.randn(3, 4)))
    calibration = draw_calibration(program, 7)
    assert [batch.batch_size for batch in calibration] == [3, 3, 3]
    for batch in calibration:
        assert batch.call(program).shape == (3, 4)


def test_nested_and_keyword_inputs_keep_their_structure() -> None:
    found = case("several")
    program = trace(found.model, found.inputs)
    for batch in draw_calibration(program, 4):
        assert set(batch.call(program)) == {"total", "parts"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_have_the_dtype_of_the_example(dtype: torch.dtype) -> None:
    program = trace(trained_cnn().to(dtype), Inputs.of(torch.randn(2, 3, 8, 8, dtype=dtype)))
    calibration = draw_calibration(program, 4)
    assert leaves(calibration).dtype == dtype and "match" in calibration.origin


def test_an_expensive_program_gets_fewer_rows_and_a_cheap_one_all(monkeypatch: pytest.MonkeyPatch) -> None:
    program = trace(trained_cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))
    assert len(leaves(draw_calibration(program, 20))) >= 20
    monkeypatch.setattr("planish.compiler.drawn_inputs.WORK", 1.0)
    assert len(leaves(draw_calibration(program, 20))) == 4
