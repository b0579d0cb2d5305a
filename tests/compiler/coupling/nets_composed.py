"""Small nets with ops that PyTorch puts together from others, and others that few models use."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
        net("unpooled", _unpooled, IMAGE, a=conv(3, 8), c=conv(8, 4, 3)),
        net("spectrum in time", lambda s, x: s.c(torch.fft.rfft(s.a(x), dim=1).abs()), SEQUENCE,
            a=lin(6, 8), c=lin(8, 3)),
    ]  # fmt: skip


def _unpooled(s: Any, x: Tensor) -> Any:
    values, places = F.max_pool2d(s.a(x), 2, return_indices=True)
    return s.c(F.max_unpool2d(values, places, (2, 2)))
