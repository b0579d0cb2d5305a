"""Token, audio and video models of the zoo, written out small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Tokens -> classes, over the last states (GRU) or the mean over time (LSTM)."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], pooled: bool):
        super().__init__()
        self.embedding, self.pooled = nn.Embedding(100, 24), pooled
        self.layers = kind(24, 20, 2, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        states, last = self.layers(self.embedding(tokens))
        return self.head(states.mean(1) if self.pooled else torch.cat([last[-2], last[-1]], 1))


class WaveNet(nn.Module):
    """https://arxiv.org/abs/1609.03499: causal dilated convolutions with gates, summed over skips."""

    def __init__(self, width: int = 16, skip: int = 20):
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**step) for step in range(4))
        self.out = nn.ModuleList(nn.Conv1d(width, width + skip, 1) for _ in range(4))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, 12, 1), nn.ReLU(), nn.Conv1d(12, 8, 1))
        self.width, self.skip = width, skip

    def forward(self, wave: Tensor) -> Tensor:
        x, total = self.first(wave), torch.zeros(())
        for step, (gated, out) in enumerate(zip(self.gated, self.out, strict=True)):
            value, gate = gated(F.pad(x, (2**step, 0))).chunk(2, 1)
            more, skipped = out(value.tanh() * gate.sigmoid()).split((self.width, self.skip), 1)
            x, total = x + more, total + skipped
        return self.head(total)


def keyword_spotter() -> nn.Module:
    """M5 of https://arxiv.org/abs/1610.00087: raw audio -> classes."""

    def layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv1d(inputs, outputs, kernel, stride), nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]

    body = [*layer(1, 24, 40, 4), *layer(24, 24, 3), *layer(24, 48, 3)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(48, 10), nn.LogSoftmax(-1))


class Residual3d(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.second = nn.Conv3d(outputs, outputs, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm3d(outputs) for _ in range(2))
        self.shortcut = nn.Conv3d(inputs, outputs, 1, (1, stride, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(self.shortcut(x) + y)


def video_resnet() -> nn.Module:
    """R(2+1)D: https://arxiv.org/abs/1711.11248"""
    stem = nn.Sequential(nn.Conv3d(3, 12, (3, 5, 5), (1, 2, 2), (1, 2, 2)), nn.BatchNorm3d(12), nn.ReLU())
    return nn.Sequential(
        stem, Residual3d(12, 12, 1), Residual3d(12, 20, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(20, 5)
    )
