"""Small nets with ops that PyTorch puts together from others, and others that few models use."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.to_onnx.families import Family
from tests.compiler.coupling.nets import IMAGE, SEQUENCE, VECTOR, conv, lin, net


def composed() -> list[Family]:
    def joined(name: str, join: Any, read: int = 8) -> Family:
        return net(name, lambda s, x: s.c(join(s.a(x), s.b(x))), VECTOR, a=lin(6, 8), b=lin(6, 8), c=lin(read, 3))

    return [
        joined("hstack", lambda a, b: torch.hstack([a, b]), 16),
        joined("dstack", lambda a, b: torch.dstack([a, b]).mean(2)[0]),
        joined("angle of two", torch.arctan2),
        joined("broadcast tensors", lambda a, b: torch.mul(*torch.broadcast_tensors(a, b.mean(0, keepdim=True)))),
        joined("dot products of rows", lambda a, b: a * torch.linalg.vecdot(a, b)[:, None]),
        joined("divided by a norm", lambda a, b: a / torch.linalg.norm(b, dim=-1, keepdim=True)),
        joined("between boundaries", lambda a, b: a * (1 + torch.bucketize(b, torch.linspace(-1, 1, 4)))),
        joined("distance to the other", lambda a, b: F.smooth_l1_loss(a, b, reduction="none")),
        net("differences in time", lambda s, x: s.c(torch.diff(s.a(x), dim=1)), SEQUENCE, a=lin(6, 8), c=lin(8, 3)),
        net("positions filled", lambda s, x: s.c(s.a(x).index_fill(1, torch.tensor([0, 2]), 0.5)), SEQUENCE,
            a=lin(6, 8), c=lin(8, 3)),
        net("losses of features", _losses, SEQUENCE, a=lin(6, 8), b=lin(6, 8), c=lin(8, 3)),
        net("the largest channel, its place unread", lambda s, x: s.c(s.a(x) * s.a(x).max(-1, keepdim=True)[0]),
            SEQUENCE, a=lin(6, 8), c=lin(8, 3)),
        net("rotated weights", lambda s, x: s.c(F.conv2d(s.a(x).relu(), s.b.weight.rot90(1, (2, 3)))), IMAGE,
            a=conv(3, 8), b=lambda: nn.Conv2d(8, 6, (3, 5)), c=conv(6, 4)),
        net("weights of each sample", _of_each_sample, IMAGE, a=conv(3, 8), w=lin(8, 48), c=conv(6, 4)),
        net("weighted by a vector",
            lambda s, x: s.c(s.a(x)) * F.linear(s.a(x).sin(), s.b.weight[0], s.b.bias[0])[..., None],
            SEQUENCE, a=lin(6, 8), b=lin(8, 2), c=lin(8, 3)),
        net("unpooled", _unpooled, IMAGE, a=conv(3, 8), c=conv(8, 4, 3)),
        net("spectrum in time", lambda s, x: s.c(torch.fft.rfft(s.a(x), dim=1).abs()), SEQUENCE,
            a=lin(6, 8), c=lin(8, 3)),
    ]  # fmt: skip


def _unpooled(s: Any, x: Tensor) -> Any:
    values, places = F.max_pool2d(s.a(x), 2, return_indices=True)
    return s.c(F.max_unpool2d(values, places, (2, 2)))


def _losses(s: Any, x: Tensor) -> Any:
    y, z = s.a(x), s.b(x[:, :1])
    return s.c(y * z), F.mse_loss(y, z.expand_as(y)), F.huber_loss(y, z.expand_as(y)), F.pairwise_distance(y, z)


def _of_each_sample(s: Any, x: Tensor) -> Any:
    """One group of a convolution for each sample (arXiv:1904.04971)."""
    y = s.a(x)
    weight = s.w(y.mean((2, 3))).view(-1, 8, 1, 1)
    return s.c(F.conv2d(y.reshape(1, -1, 8, 8), weight, groups=y.shape[0]).view(-1, 6, 8, 8).relu())
