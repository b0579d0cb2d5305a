"""Two students that teach each other while they learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from planish.compiler.program import Program
from planish.compiler.progress import Stages
from planish.compiler.training_data import Batch, TrainingData
from planish.passes.distill.losses import SoftTargets
from planish.passes.distill.outputs import Seen
from planish.passes.training.fit import Trained, fit
from planish.passes.training.labels import task_loss
from planish.passes.training.model import move
from planish.passes.training.run import Metric
from planish.passes.training.settings import Training


def learn_mutually(
    first: Program,
    second: Program,
    data: TrainingData,
    training: Training,
    *,
    temperature: float = 1.0,
    metric: Metric | None = None,
    seed: int = 0,
    progress: Stages | None = None,
) -> tuple[Trained, Program]:
    """Zhang et al., Deep Mutual Learning, arXiv:1706.00384: two students, none of them trained before.

    Each learns from the labels and from what the other predicts at that moment; both take a step at once. Copies of
    both are returned, the first with the history; with a ``metric``, those of the moment at which the first was best.
    """
    second = second.copy().train()
    peer = _Peer(second, temperature)
    trained = fit(first, data, peer, training, metric=metric, seed=seed, progress=progress)
    move(second, torch.device("cpu"))
    return trained, second.eval()


class _Peer(nn.Module):
    """The objective of the first student; the second one is trained along, as part of it."""

    def __init__(self, second: Program, temperature: float) -> None:
        super().__init__()
        self.second = second.graph_module
        self._imitate = SoftTargets(temperature=temperature)

    def forward(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        others = batch.inputs.call(self.second)
        return {
            "labels": task_loss(outputs, batch.labels),
            "labels of the second": task_loss(others, batch.labels),
            "first from second": self._imitate.value(Seen(outputs, _fixed(others), batch)),
            "second from first": self._imitate.value(Seen(others, _fixed(outputs), batch)),
        }


def _fixed(outputs: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, outputs)
