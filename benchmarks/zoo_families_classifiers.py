"""Image classifiers of the zoo that no library at hand builds, written out small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import conv_bn


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_bn(inputs, outputs, kernel, stride, groups), nn.ReLU())


def classifier(width: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Branches(nn.Module):
    """The results of ``branches``, one behind the other."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def googlenet() -> nn.Module:
    """https://arxiv.org/abs/1409.4842"""

    def inception(inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> nn.Module:
        return Branches(
            block(inputs, one, 1),
            nn.Sequential(block(inputs, three[0], 1), block(*three)),
            nn.Sequential(block(inputs, five[0], 1), block(*five, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), block(inputs, pooled, 1)),
        )

    return nn.Sequential(
        block(3, 32, 7, 2), nn.MaxPool2d(3, 2, 1), block(32, 32, 1), block(32, 64), nn.MaxPool2d(3, 2, 1),
        inception(64, 16, (24, 32), (4, 8), 8), inception(64, 32, (32, 48), (8, 24), 16), nn.MaxPool2d(3, 2, 1),
        inception(120, 48, (24, 52), (4, 12), 16), nn.Dropout(0.2), classifier(128),
    )  # fmt: skip


def squeezenet() -> nn.Module:
    """https://arxiv.org/abs/1602.07360: the classifier is a convolution."""

    def fire(inputs: int, squeeze: int, expand: int) -> nn.Module:
        narrow = nn.Sequential(nn.Conv2d(inputs, squeeze, 1), nn.ReLU())
        one, three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)
        return nn.Sequential(narrow, Branches(one, three), nn.ReLU())

    return nn.Sequential(
        nn.Conv2d(3, 24, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), fire(24, 8, 32), fire(64, 8, 32),
        nn.MaxPool2d(3, 2, ceil_mode=True), fire(64, 16, 48), nn.Conv2d(96, 10, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class ShuffleV1(nn.Module):
    """A unit of https://arxiv.org/abs/1707.01083: grouped 1x1 convolutions with a shuffle between."""

    def __init__(self, width: int, groups: int, stride: int):
        super().__init__()
        self.groups, self.stride = groups, stride
        self.narrow = block(width, width // 4, 1, groups=groups)
        self.filter = nn.Sequential(*conv_bn(width // 4, width // 4, 3, stride, width // 4))
        self.widen = nn.Sequential(*conv_bn(width // 4, width, 1, groups=groups))

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(x)
        n, c, h, w = y.shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.widen(self.filter(y))
        if self.stride == 1:
            return F.relu(x + y)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))


def shufflenet_v1() -> nn.Module:
    units = [ShuffleV1(24, 3, 2), ShuffleV1(48, 3, 1), ShuffleV1(48, 3, 2), ShuffleV1(96, 3, 1)]
    return nn.Sequential(block(3, 24, 3, 2), *units, classifier(96))


class ShuffleV2(nn.Module):
    """A unit of https://arxiv.org/abs/1807.11164: half of the channels pass by, then all are shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        half = outputs // 2
        self.stride = stride
        reads = inputs if stride == 2 else half
        self.branch = nn.Sequential(block(reads, half, 1), *conv_bn(half, half, 3, stride, half), block(half, half, 1))
        if stride == 2:
            self.shortcut = nn.Sequential(*conv_bn(inputs, inputs, 3, 2, inputs), block(inputs, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            passed, worked = x.chunk(2, 1)
            y = torch.cat([passed, self.branch(worked)], 1)
        else:
            y = torch.cat([self.shortcut(x), self.branch(x)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2() -> nn.Module:
    units = [
        ShuffleV2(16, 32, 2),
        *(ShuffleV2(32, 32, 1) for _ in range(3)),
        ShuffleV2(32, 64, 2),
        ShuffleV2(64, 64, 1),
    ]
    return nn.Sequential(block(3, 16, 3, 2), *units, block(64, 96, 1), classifier(96))


class ZeroPadded(nn.Module):
    """A block of a CIFAR ResNet whose shortcut drops every other pixel and pads the channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(block(inputs, outputs, 3, stride), *conv_bn(outputs, outputs, 3))
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        half = self.missing // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(self.branch(x) + shortcut)


def cifar_resnet() -> nn.Module:
    blocks = [ZeroPadded(16, 16, 1), ZeroPadded(16, 32, 2), ZeroPadded(32, 32, 1), ZeroPadded(32, 64, 2)]
    return nn.Sequential(block(3, 16), *blocks, classifier(64))
