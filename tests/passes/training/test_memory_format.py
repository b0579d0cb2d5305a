"""Images with channels innermost: where it holds, and that nothing but time changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.inputs import Inputs
from planish.compiler.training_data import Batch
from planish.passes.training.memory_format import channels_last, suits_channels_last
from planish.passes.training.model import TrainedModel
from tests.backends.to_onnx.family_base import Function
from tests.passes.nets import traced

IMAGES = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def of_images(forward: Any) -> Any:
    torch.manual_seed(0)
    return traced(Function(forward, conv=nn.Conv2d(4, 8, 3)).double(), IMAGES)


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.conv(x).view(x.shape[0], -1),
        lambda s, x: s.conv(x).flatten(1),
        lambda s, x: s.conv(x).transpose(1, 2).reshape(x.shape[0], -1),
        lambda s, x: s.conv(x).view(x.shape[0], 2, 4, 4, 4).transpose(1, 2).contiguous().view(x.shape[0], 8, 4, 4),
        lambda s, x: s.conv(x).unfold(2, 2, 1).sum(-1),
    ],
)
def test_a_net_of_images_computes_the_same_on_them(forward: Any) -> None:
    program = of_images(forward)
    assert suits_channels_last(program)
    (moved,) = channels_last(Inputs((IMAGES,))).args
    assert moved.is_contiguous(memory_format=torch.channels_last) and not moved.is_contiguous()
    torch.testing.assert_close(program(moved), program(IMAGES), rtol=1e-12, atol=1e-12)


def test_nets_that_read_memory_as_it_lies_or_have_no_images_are_left_alone() -> None:
    def pairs(s: Any, x: Any) -> Any:
        return torch.view_as_complex(s.conv(x).unflatten(1, (4, 2)).movedim(2, -1).contiguous()).abs()

    paired = of_images(pairs)
    assert not suits_channels_last(paired)
    assert not suits_channels_last(traced(nn.Linear(4, 2), torch.randn(2, 4)))


def test_the_model_in_training_sees_them_and_its_objective_sees_the_batch() -> None:
    seen: list[Tensor] = []
    program = of_images(lambda s, x: s.conv(x))

    def objective(outputs: Any, batch: Batch) -> dict[str, Tensor]:
        seen.extend([outputs, *batch.inputs.leaves()])
        return {"loss": outputs.mean()}

    TrainedModel(program, objective, None, bf16=False)(Batch(Inputs((IMAGES,))))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[1] is IMAGES
