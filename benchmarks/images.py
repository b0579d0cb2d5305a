"""CIFAR-10 for trainings: augmented batches of 32 x 32 images, and how many labels a model gets right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BATCH = 128


@dataclass(frozen=True)
class Augmented:
    """Batches of (images [128, 3, 32, 32], labels), mirrored and shifted anew in every epoch (arXiv:1512.03385).

    ``views``: so many different epochs, drawn again and again: a teacher's cache has an answer from the second time on.
    ``batches``: fewer an epoch, for a smoke test.
    """

    images: Tensor
    labels: Tensor
    views: int | None = None
    batches: int | None = None

    def __len__(self) -> int:
        return self.batches or len(self.images) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.views is not None:
            torch.manual_seed(int(torch.randint(self.views, ())))
        order = torch.randperm(len(self.images))
        for rows in order[: len(self) * BATCH].split(BATCH):
            yield shifted(self.images[rows]), self.labels[rows]


def shifted(images: Tensor) -> Tensor:
    """Half of them mirrored, each moved by up to 4 pixels."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    padded = F.pad(mirrored, (4, 4, 4, 4))
    shifts = torch.randint(9, (len(images), 2))
    rows = (shifts[:, :1] + torch.arange(32))[:, :, None]
    columns = (shifts[:, 1:] + torch.arange(32))[:, None, :]
    picked: Tensor = padded.permute(0, 2, 3, 1)[torch.arange(len(images))[:, None, None], rows, columns]
    return picked.permute(0, 3, 1, 2).contiguous()


def top1(run: Any, images: Tensor, labels: Tensor) -> float:
    """Percent."""
    with torch.no_grad():
        right = sum(
            int((run(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return 100 * right / len(labels)
