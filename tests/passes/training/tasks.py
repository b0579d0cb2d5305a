"""A small task that every test of training shares: which of five inputs is the largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import planish
from planish.compiler.program import Program
from planish.compiler.training_data import Batch, TrainingData
from planish.passes.training.weights import tensors_of

ROWS, FEATURES, CLASSES = 192, 20, 5


def examples(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(3))
    return x, x[:, :CLASSES].argmax(1)


def loader(batch: int = 32, rows: int = ROWS, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*examples(rows)), batch_size=batch, **{"shuffle": True, **options})


def data(batch: int = 32, **options: Any) -> TrainingData:
    return TrainingData(loader(batch, **options))


class Net(nn.Module):
    """Batch norm and dropout, so that modes, buffers and random numbers matter."""

    def __init__(self, dropout: float = 0.1, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.dropout(self.norm(self.first(x)).relu()))
        return result


def program(**options: Any) -> Program:
    torch.manual_seed(1)
    return planish.trace(Net(**options), torch.zeros(2, FEATURES))


def cross_entropy(outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
    return {"hard": F.cross_entropy(outputs, batch.labels)}


def accuracy(run: Callable[..., Any]) -> float:
    x, y = examples()
    return (run(x).argmax(1) == y).float().mean().item()


def assert_same_tensors(one: Program, other: Program) -> None:
    ours, theirs = tensors_of(one.graph_module), tensors_of(other.graph_module)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
