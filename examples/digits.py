"""From training to a verified artifact: a small CNN on real 8 x 8 images of digits, compiled for this machine.

    make demo        or        python examples/digits.py

It trains for some seconds, compiles, and leaves the artifact and the report in out/digits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import planish
from planish.compiler.report_table import as_renderable

TARGET = "local"
OUTPUT = Path("out/digits")
EPOCHS = 6
BATCH = 64


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.second, self.second_norm = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + x)


class DigitsNet(nn.Module):
    """Images of one channel and 8 x 8 pixels to scores of the ten digits."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.Sequential(Residual(channels), Residual(channels), nn.MaxPool2d(2), Residual(channels))
        self.head = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.stem(images))
        scores: Tensor = self.head(features.mean((2, 3)))
        return scores


def loaders(seed: int = 0) -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """1,797 real images: four fifths to train on, the others held out."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    whole = TensorDataset(images, torch.tensor(digits.target))
    generator = torch.Generator().manual_seed(seed)
    train, held_out = random_split(whole, [0.8, 0.2], generator)
    return DataLoader(train, BATCH, shuffle=True, drop_last=True, generator=generator), DataLoader(held_out, BATCH)


def train(model: nn.Module, batches: DataLoader[tuple[Tensor, ...]], epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * len(batches))
    model.train()
    for epoch in range(epochs):
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:2d} of {epochs}: loss {loss.item():.4f}")
    model.eval()


def accuracy_on(batches: DataLoader[tuple[Tensor, ...]]) -> Callable[[Callable[..., Tensor]], float]:
    """A metric for planish: it gets something to call, the model or an artifact."""

    def accuracy(run: Callable[..., Tensor]) -> float:
        right = [(run(images).argmax(1) == labels).float() for images, labels in batches]
        return torch.cat(right).mean().item()

    return accuracy


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--target", default=TARGET)
    options.add_argument("--output", type=Path, default=OUTPUT)
    options.add_argument("--epochs", type=int, default=EPOCHS)
    chosen = options.parse_args()

    start = time.perf_counter()
    torch.manual_seed(0)
    training, held_out = loaders()
    model = DigitsNet()
    train(model, training, chosen.epochs)
    print(f"Trained in {time.perf_counter() - start:.0f} s.\n")

    result = planish.compile(
        model,
        target=chosen.target,
        calibration=training,
        metric=accuracy_on(held_out),
        output=chosen.output,
    )
    Console().print(as_renderable(result.report))

    images, labels = next(iter(held_out))
    answers = planish.load(chosen.output).run(images[:8]).argmax(1)
    print(f"\nThe artifact, loaded again, reads {answers.tolist()}; the labels are {labels[:8].tolist()}.")
    print("\nLook at")
    for place, told in (
        (chosen.output / "report.json", "every figure above, and every decision"),
        (chosen.output / "manifest.json", "what the artifact is made of, with SHA-256 sums"),
        (f"planish report {chosen.output}", "this table again"),
    ):
        print(f"  {place!s:32} {told}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # images this small are not worth sharing out: threads would wait for each other
    main()
