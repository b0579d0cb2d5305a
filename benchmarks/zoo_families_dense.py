"""Detectors, segmenters and autoencoders of the zoo, written out small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo_families_classifiers import Branches, block


class Csp(nn.Module):
    """YOLOv8's C2f: the halves of a projection, of which one goes through a chain whose every step is kept."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool = True):
        super().__init__()
        self.width, self.shortcut = outputs // 2, shortcut
        self.first, self.last = block(inputs, outputs, 1), block((2 + depth) * self.width, outputs, 1)
        self.chain = nn.ModuleList(
            nn.Sequential(block(self.width, self.width), block(self.width, self.width)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept = [*self.first(x).split((self.width, self.width), 1)]
        for step in self.chain:
            y = step(kept[-1])
            kept.append(kept[-1] + y if self.shortcut else y)
        return self.last(torch.cat(kept, 1))


class Sppf(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first, self.last = block(width, width // 2, 1), block(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.first(x)]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        return self.last(torch.cat(pooled, 1))


class Yolo(nn.Module):
    """Backbone, neck and heads at three scales, boxes as expectations over 8 bins: https://docs.ultralytics.com"""

    bins: Tensor

    def __init__(self, classes: int = 5):
        super().__init__()
        self.stem = nn.Sequential(block(3, 8, 3, 2), block(8, 16, 3, 2), Csp(16, 16, 1))
        self.down3 = nn.Sequential(block(16, 32, 3, 2), Csp(32, 32, 2))
        self.down4 = nn.Sequential(block(32, 48, 3, 2), Csp(48, 48, 1))
        self.down5 = nn.Sequential(block(48, 64, 3, 2), Csp(64, 64, 1), Sppf(64))
        self.up4, self.up3 = Csp(64 + 48, 48, 1, False), Csp(48 + 32, 32, 1, False)
        self.back3, self.out4 = block(32, 32, 3, 2), Csp(32 + 48, 48, 1, False)
        self.back4, self.out5 = block(48, 48, 3, 2), Csp(48 + 64, 64, 1, False)
        self.boxes = nn.ModuleList(nn.Sequential(block(width, 16), nn.Conv2d(16, 32, 1)) for width in (32, 48, 64))
        self.kinds = nn.ModuleList(nn.Sequential(block(width, 16), nn.Conv2d(16, classes, 1)) for width in (32, 48, 64))
        self.register_buffer("bins", torch.arange(8.0))

    def forward(self, x: Tensor) -> list[Tensor]:
        three = self.down3(self.stem(x))
        four = self.down4(three)
        five = self.down5(four)
        four = self.up4(torch.cat([F.interpolate(five, scale_factor=2), four], 1))
        three = self.up3(torch.cat([F.interpolate(four, scale_factor=2), three], 1))
        four = self.out4(torch.cat([self.back3(three), four], 1))
        five = self.out5(torch.cat([self.back4(four), five], 1))
        outputs = []
        for features, boxes, kinds in zip((three, four, five), self.boxes, self.kinds, strict=True):
            n, _, h, w = features.shape
            sides = boxes(features).view(n, 4, 8, h * w).softmax(2)
            outputs.append(
                torch.cat([torch.einsum("nskp,k->nsp", sides, self.bins), kinds(features).flatten(2).sigmoid()], 1)
            )
        return outputs


class UNet(nn.Module):
    """https://arxiv.org/abs/1505.04597"""

    def __init__(self, widths: Sequence[int] = (8, 16, 24, 32)):
        super().__init__()
        pairs = [*zip((3, *widths[:-1]), widths, strict=True)]
        self.down = nn.ModuleList(nn.Sequential(block(a, b), block(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs[:0:-1])
        self.merge = nn.ModuleList(nn.Sequential(block(2 * a, a), block(a, a)) for a, _ in pairs[:0:-1])
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for index, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if index else x)
            kept.append(x)
        for up, merge, skipped in zip(self.up, self.merge, kept[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skipped], 1))
        return self.head(x)


class Fpn(nn.Module):
    """https://arxiv.org/abs/1612.03144, with one head for all scales."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 24, 32)
        self.stages = nn.ModuleList(block(a, b, 3, 2) for a, b in zip((3, *widths), widths, strict=False))
        self.lateral = nn.ModuleList(nn.Conv2d(width, 20, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(20, 20, 3, padding=1) for _ in widths)
        self.head = nn.Sequential(block(20, 12), nn.Conv2d(12, 6, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        merged = levels[-1:]
        for level in levels[-2::-1]:
            merged.append(level + F.interpolate(merged[-1], size=level.shape[-2:], mode="nearest"))
        return tuple(self.head(smooth(level)) for smooth, level in zip(self.smooth, merged, strict=True))


class DeepLab(nn.Module):
    """https://arxiv.org/abs/1802.02611: dilated convolutions side by side, one of them on the image's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = block(3, 16, 3, 2), nn.Sequential(block(16, 32, 3, 2), block(32, 48, 3, 2))
        dilated = [nn.Sequential(nn.Conv2d(48, 16, 3, padding=rate, dilation=rate), nn.ReLU()) for rate in (2, 4)]
        self.pyramid = Branches(block(48, 16, 1), *dilated)
        self.pooled, self.project = block(48, 16, 1), block(64, 32, 1)
        self.detail, self.head = block(16, 8, 1), nn.Sequential(block(40, 24), nn.Conv2d(24, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        high = self.high(low)
        mean = F.interpolate(self.pooled(high.mean((2, 3), keepdim=True)), high.shape[-2:], mode="bilinear")
        high = self.project(torch.cat([self.pyramid(high), mean], 1))
        high = F.interpolate(high, low.shape[-2:], mode="bilinear", align_corners=False)
        return F.interpolate(self.head(torch.cat([high, self.detail(low)], 1)), x.shape[-2:], mode="bilinear")


def autoencoder() -> nn.Module:
    down = [
        nn.Conv2d(3, 12, 3, 2, 1),
        nn.ELU(),
        nn.Conv2d(12, 20, 3, 2, 1),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(20 * 64, 32),
    ]
    up = [
        nn.ReLU(),
        nn.Linear(32, 20 * 64),
        nn.Unflatten(1, (20, 8, 8)),
        nn.ConvTranspose2d(20, 12, 4, 2, 1),
        nn.ReLU(),
    ]
    return nn.Sequential(*down, *up, nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Sigmoid())


class Variational(nn.Module):
    """A variational autoencoder at its mean: both halves of what the encoder says are returned."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(48, 32), nn.SiLU(), nn.Linear(32, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.LayerNorm(32), nn.Linear(32, 48))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logarithm = self.encoder(x).chunk(2, -1)
        return self.decoder(mean), (mean.square() + logarithm.exp() - logarithm).mean(-1)
