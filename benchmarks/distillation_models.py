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
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.sparsity_data import Sentences
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


def small_convolutions() -> nn.Sequential:
    """784 pixels to 10 digits, in 11,018 parameters."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))]
    for inputs, outputs in ((1, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


# ---------------------------------------------------------------------- sentences


def sentences(source: ModuleType) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]:
    """SST-2 in numbers: (train, labels), (dev, labels), and how many words there are.

    Each row is the place of its sentence among all, train before dev, then its words, 0 behind the end.
    """
    train, dev = source.sst2("train"), source.sst2("dev")
    counts = Counter(word for text, _ in train for word in text.split())
    numbers = {word: number for number, (word, _) in enumerate(counts.most_common(WORDS), 2)}

    def encoded(rows: list[tuple[str, int]], first: int) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(len(rows), 1 + LENGTH, dtype=torch.int64)
        for row, (text, _) in enumerate(rows):
            found = [numbers.get(word, 1) for word in text.split()[:LENGTH]]
            ids[row, : 1 + len(found)] = torch.tensor([first + row, *found])
        return ids, torch.tensor([label for _, label in rows])

    return encoded(train, 0), encoded(dev, len(train)), len(numbers) + 2


def embeddings(source: ModuleType, weights: Path) -> Tensor:
    """What MiniLM makes of all sentences of SST-2, train before dev: [sentences, 384]."""
    from tokenizers import Tokenizer

    texts = [text for part in ("train", "dev") for text, _ in source.sst2(part)]
    tokenizer = Tokenizer.from_file(str(weights.with_name("tokenizer.json")))
    tokenizer.no_padding()
    read, model = Sentences(tokenizer, []), source.minilm(weights).eval()
    found = torch.zeros(len(texts), 384)
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            rows = by_length[start : start + 64]
            found[rows] = model(*read.tokens([texts[row] for row in rows]))
    return found


class Embedded(nn.Module):
    """A classifier of embeddings that lie in a table: the row of each sentence stands before its words."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding.from_pretrained(embeddings), nn.Linear(embeddings.shape[1], 2)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.table(ids[:, 0]))
        return result


class Recurrent(nn.Module):
    """A BiLSTM."""

    def __init__(self, words: int, width: int = 48) -> None:
        super().__init__()
        self.table, self.dropout = nn.Embedding(words, width), nn.Dropout(0.3)
        self.rnn = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.pooled, self.head = nn.Dropout(0.3), nn.Linear(2 * width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        words = ids[:, 1:]
        tokens, _ = self.rnn(self.dropout(self.table(words)))
        there = (words != 0).unsqueeze(2).to(tokens.dtype)
        pooled = self.pooled((tokens * there).sum(1) / there.sum(1).clamp_min(1.0))
        result: Tensor = self.head(pooled)
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
