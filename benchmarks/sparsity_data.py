"""What the sparsity benchmarks read: sentence pairs with their scores, and images that are shifted in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn


@dataclass(frozen=True)
class Sentences:
    """Pairs of STS-B with their scores, and what turns text into tokens."""

    tokenizer: Any
    pairs: list[tuple[str, str, float]]

    def tokens(self, texts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids and mask, int64 [texts, tokens]: padded to the longest, or to ``length``."""
        rows = [self.tokenizer.encode(text).ids[: length or 512] for text in texts]
        width = length or max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return ids, (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()

    def spearman(self, model: nn.Module) -> float:
        """100 x rank correlation of the cosine of each pair's embeddings with its score."""
        texts = sorted({text for first, second, _ in self.pairs for text in (first, second)}, key=len)
        embedded: dict[str, Tensor] = {}
        with torch.no_grad():
            for start in range(0, len(texts), 64):
                part = texts[start : start + 64]
                embedded.update(zip(part, model(*self.tokens(part)), strict=True))
        cosines = [float(embedded[first] @ embedded[second]) for first, second, _ in self.pairs]
        return 100 * float(spearmanr(cosines, [score for *_, score in self.pairs]).statistic)


@dataclass(frozen=True)
class Shifted:
    """Images in batches, in a new order in every epoch, shifted by up to ``by`` pixels, and mirrored, at random."""

    images: Tensor
    labels: Tensor
    by: int
    mirrored: bool
    batch: int = 128

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images))
        for rows in order[: len(self) * self.batch].split(self.batch):
            yield self._moved(self.images[rows]), self.labels[rows]

    def _moved(self, images: Tensor) -> Tensor:
        padded = nn.functional.pad(images, (self.by,) * 4)
        down, right = torch.randint(2 * self.by + 1, (2,)).tolist()
        cut = padded[:, :, down : down + images.shape[2], right : right + images.shape[3]]
        return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, cut.flip(3), cut) if self.mirrored else cut


def accuracy(images: Tensor, labels: Tensor) -> Callable[[Callable[..., Any]], float]:
    def score(run: Callable[..., Any]) -> float:
        with torch.no_grad():
            guesses = torch.cat([run(part).argmax(1) for part in images.split(250)])
        return float((guesses == labels).double().mean())

    return score
