"""Audio, volumes, segmentation, pooling, padding, normalization."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.compiler.inputs import Inputs
from tests.backends.to_onnx.families import Family
from tests.backends.to_onnx.family_base import Function, floats


def convolutional() -> list[Family]:
    return [
        Family("audio-conv1d", _audio, floats(1, 400)),
        Family("volume-conv3d", _volume, floats(2, 8, 16, 16)),
        Family("unet", UNet, floats(3, 32, 32)),
        Family("deconvolution", _deconvolution, floats(4, 9, 9)),
        Family("circular-and-reflect", _padded, floats(3, 12, 12)),
        Family("super-resolution", _super_resolution, floats(3, 10, 10)),
        Family("depthwise-shuffle", _shuffle, floats(8, 10, 10)),
        Family("two-tower", _two_tower, lambda batch: Inputs((torch.randn(batch, 8), torch.randn(batch, 3, 16, 16)))),
        Family("pools", lambda: Function(_pools), floats(4, 13, 11)),
        Family("mlp-norms", _norms, floats(6, 8, 8)),
        Family("squeeze-excite", _excite, floats(8, 9, 9)),
        Family("weight-norm", _weight_norm, floats(3, 20)),
    ]


def _audio() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 8, 10, 5, bias=False),
        nn.GroupNorm(8, 8),
        nn.GELU(),
        nn.Conv1d(8, 8, 3, 2, padding="valid"),
        nn.GELU(),
        nn.Conv1d(8, 16, 3, padding="same", dilation=2),
        nn.BatchNorm1d(16),
        nn.GLU(dim=1),
        nn.AdaptiveMaxPool1d(4),
        nn.Flatten(),
        nn.Linear(32, 5),
        nn.LogSoftmax(dim=-1),
    )


def _volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(4, 8, (3, 1, 1)),
        nn.InstanceNorm3d(8, affine=True),
        nn.LeakyReLU(0.1),
        nn.AvgPool3d(2),
        nn.ConvTranspose3d(8, 4, 2, 2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out1, self.out2 = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        up = F.relu(self.out1(torch.cat([self.up1(b), a], 1)))
        large = F.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)
        same = F.interpolate(large, size=x.shape[-2:], mode="bilinear", align_corners=True)
        return {"mask": self.out2(up).sigmoid(), "class": self.out2(up).argmax(1), "same": same}


def _deconvolution() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.PReLU(6),
        nn.ConvTranspose2d(6, 4, 4, 2, 1, groups=2),
        nn.SELU(),
        nn.ConvTranspose2d(4, 2, 3, dilation=2),
        nn.Tanh(),
    )


def _padded() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.ReflectionPad2d((1, 2, 0, 1)),
        nn.ReplicationPad2d(1),
        nn.ConstantPad2d((1, 0, -1, 2), 0.5),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Hardswish(),
        nn.ELU(),
    )


def _super_resolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Mish(),
        nn.PixelShuffle(2),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Upsample(size=(33, 31), mode="bicubic"),
        nn.PixelUnshuffle(1),
        nn.Upsample(scale_factor=1.5, mode="bilinear"),
        nn.CELU(),
    )


def _shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ChannelShuffle(4),
        nn.Conv2d(8, 12, 1, groups=4),
        nn.ReLU6(),
        nn.Unfold(3, stride=2),
    )


def _two_tower() -> nn.Module:
    def run(self: Any, a: Tensor, b: Tensor) -> tuple[Tensor, list[Tensor]]:
        u, v = F.normalize(self.left(a), dim=-1), F.normalize(self.right(b).flatten(1), dim=-1)
        return u @ v.t(), [F.cosine_similarity(u, v), torch.cdist(u, v)]

    return Function(run, left=nn.Linear(8, 12), right=nn.Sequential(nn.Conv2d(3, 3, 3, 4), nn.AvgPool2d(2)))


def _pools(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    return (
        F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        F.avg_pool2d(x, 2, ceil_mode=True),
        F.adaptive_avg_pool2d(x, (5, 4)),
        F.adaptive_max_pool2d(x, (3, 2)),
        F.max_pool2d(x, 2, return_indices=True)[1],
        F.lp_pool2d(x, 2, 3),
        F.avg_pool2d(x, 3, 1, 1, divisor_override=5),
        F.local_response_norm(x, 3),
        x.mean((2, 3)),
        x.amax((-1,)),
    )


def _norms() -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm([6, 8, 8]),
        nn.GroupNorm(3, 6),
        nn.InstanceNorm2d(6),
        nn.BatchNorm2d(6, track_running_stats=False),
        nn.RMSNorm(8),
        nn.LayerNorm(8, bias=False),
        nn.LayerNorm(8, elementwise_affine=False),
        nn.Softmax2d(),
        nn.Softplus(2.0),
        nn.Hardtanh(-0.3, 0.4),
    )


def _excite() -> nn.Module:
    gate = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.SiLU(inplace=True), nn.Conv2d(4, 8, 1), nn.Hardsigmoid()
    )
    return Function(
        lambda self, x: self.body(x) * self.gate(self.body(x)), body=nn.Conv2d(8, 8, 3, padding="same"), gate=gate
    )


def _weight_norm() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3))
    return nn.Sequential(
        layer,
        nn.Softsign(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(18, 4)),
        nn.Hardshrink(),
        nn.Tanhshrink(),
    )
