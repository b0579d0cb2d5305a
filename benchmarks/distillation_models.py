"""Models and data of the distillation benchmark."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.zoo_cases import zoo
from planish.compiler.report import write_atomically

Figures = TypeVar("Figures")
WORDS, LENGTH = 8000, 48


def loader(inputs: Tensor, labels: Tensor, batch: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(inputs, labels), batch_size=batch, shuffle=True, drop_last=True)


def accuracy(inputs: Tensor, labels: Tensor) -> Callable[[Callable[..., Any]], float]:
    """A metric: the share of rows on whose label a model has its highest score."""

    def metric(run: Callable[..., Any]) -> float:
        parts = zip(inputs.split(250), labels.split(250), strict=True)
        with torch.no_grad():
            return sum(int((run(x).argmax(1) == y).sum()) for x, y in parts) / len(labels)

    return metric


def cifar() -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """ResNet-44, training images with their labels, and test images with theirs."""
    source = zoo()
    (pixels, labels), (tests, answers) = source.cifar10("train_20k"), source.cifar10("test_open_5k")
    model: nn.Module = source.load_real("resnet44-cifar10").model
    return model, source.imagenet_norm(pixels), labels, source.imagenet_norm(tests), answers


def kept(folder: Path, name: str, compute: Callable[[], Figures]) -> Figures:
    """The figures of a case that has ended before, or those that it ends with now."""
    path = folder / f"{name}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(compute()))
    found: Figures = json.loads(path.read_text())
    return found


def mnist_net(*hidden: int) -> nn.Sequential:
    """784 pixels to 10 digits."""
    torch.manual_seed(0)
    sizes = (784, *hidden)
    layers = [layer for a, b in zip(sizes, hidden, strict=False) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


# ---------------------------------------------------------------------- sentences


def sentences(source: ModuleType) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """SST-2 as numbers of words, 0 behind the end: (train, labels), (dev, labels), and how many words there are."""
    train, dev = source.sst2("train"), source.sst2("dev")
    counts = Counter(word for text, _ in train for word in text.split())
    numbers = {word: number for number, (word, _) in enumerate(counts.most_common(WORDS), 2)}

    def encoded(rows: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(len(rows), LENGTH, dtype=torch.int64)
        for row, (text, _) in enumerate(rows):
            found = [numbers.get(word, 1) for word in text.split()[:LENGTH]]
            ids[row, : len(found)] = torch.tensor(found)
        return ids, torch.tensor([label for _, label in rows])

    return encoded(train), encoded(dev), len(numbers) + 2


def _pooled(tokens: Tensor, ids: Tensor) -> Tensor:
    """The mean over the words."""
    there = (ids != 0).unsqueeze(2).to(tokens.dtype)
    return (tokens * there).sum(1) / there.sum(1).clamp_min(1.0)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        parts = self.qkv(self.first(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value, there[:, None, None])
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        result: Tensor = x + self.dropout(self.narrow(F.gelu(self.wide(self.second(x)))))
        return result


class Transformer(nn.Module):
    def __init__(self, words: int, width: int = 128, heads: int = 4, layers: int = 2, dropout: float = 0.3) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.table(ids) + self.places)
        there = ids != 0
        for layer in self.layers:
            x = layer(x, there)
        result: Tensor = self.head(_pooled(x, ids))
        return result


class Recurrent(nn.Module):
    """A BiLSTM."""

    def __init__(self, words: int, width: int = 48) -> None:
        super().__init__()
        self.table, self.dropout = nn.Embedding(words, width), nn.Dropout(0.3)
        self.rnn = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        tokens, _ = self.rnn(self.dropout(self.table(ids)))
        result: Tensor = self.head(self.dropout(_pooled(tokens, ids)))
        return result


# ---------------------------------------------------------------------- recommendations


class Towers(nn.Module):
    """Users and items of 32 numbers each, side by side, to embeddings of one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.user, self.item = (
            nn.Sequential(nn.Linear(32, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(2)
        )

    def forward(self, both: Tensor) -> tuple[Tensor, Tensor]:
        user, item = both.chunk(2, 1)
        return self.user(user), self.item(item)


def ndcg(model: Callable[..., Any], truth: Callable[..., Any], users: Tensor, items: Tensor, top: int = 10) -> float:
    """Mean NDCG of the first ``top`` items of each user; an item is worth 1 to 10 if the truth ranks it among ten."""

    def scores(towers: Callable[..., Any]) -> Tensor:
        with torch.no_grad():
            user = towers(torch.cat([users, items[:1].expand(len(users), -1)], 1))[0]
            item = towers(torch.cat([users[:1].expand(len(items), -1), items], 1))[1]
            product: Tensor = user @ item.T
            return product

    wanted = scores(truth).topk(top, 1).indices
    worth = torch.zeros(len(users), len(items)).scatter(1, wanted, torch.arange(top, 0, -1.0).expand(len(users), -1))
    discount = 1 / torch.arange(2.0, top + 2).log2()
    found = worth.gather(1, scores(model).topk(top, 1).indices)
    return float(((found * discount).sum(1) / (torch.arange(top, 0, -1.0) * discount).sum()).mean())
