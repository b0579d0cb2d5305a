"""Small nets that look up, write to positions, transform or compare: the axes that count positions must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.to_onnx.families import Family
from tests.compiler.coupling.nets import IMAGE, SEQUENCE, VECTOR, conv, lin, net


def indexing() -> list[Family]:
    return [*reads(), *writes(), *transforms()]


def rows(x: Tensor, *shape: int) -> Tensor:
    return torch.zeros(x.shape[0], *shape, dtype=torch.long)


def of_sequence(name: str, change: Callable[[Tensor, Tensor], Tensor]) -> Family:
    """``change`` of two branches, whose 8 channels a head reads."""
    return net(name, lambda s, x: s.c(change(s.a(x), s.b(x))), SEQUENCE, a=lin(6, 8), b=lin(6, 8), c=lin(8, 3))


def sampled_heads(s: Any, x: Tensor) -> Any:
    """Two heads beside the batch, each read at positions of its own (arXiv:2010.04159)."""
    values = s.a(x).unflatten(-1, (2, 4)).permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(2)
    places = s.b(x).tanh().unflatten(-1, (2, 2)).transpose(1, 2).flatten(0, 1).unsqueeze(1)
    read = F.grid_sample(values, places, align_corners=False).squeeze(2)
    return s.c(read.unflatten(0, (-1, 2)).flatten(1, 2).transpose(1, 2))


def reads() -> list[Family]:
    return [
        of_sequence("gathered rows", lambda a, b: a.gather(1, rows(a, 2, 8)) + b[:, :2]),
        of_sequence("one gathered channel", lambda a, b: a.gather(1, rows(a, 2, 1)) + b[:, :2]),
        of_sequence("rows taken along", lambda a, b: a.take_along_dim(rows(a, 2, 1), 1) + b[:, :2]),
        of_sequence("rows in another order", lambda a, b: a[:, torch.tensor([3, 1, 2, 0, 4])] + b),
        of_sequence("rows that a mask leaves", lambda a, b: (a * b.sigmoid())[:, [True, False, True, True, False]]),
        of_sequence("all rows that a mask of samples leaves", _masked),
        of_sequence("values counted", lambda a, b: a * b * torch.histc(rows(a, 5).float(), 5, 0, 4)[:, None]),
        of_sequence("running maxima", lambda a, b: a.cummax(1)[0] * b.cumsum(1)),
        of_sequence("second smallest of rows", lambda a, b: a.kthvalue(2, 1, keepdim=True)[0] + b),
        net("heads sampled at positions of their own", sampled_heads, SEQUENCE, a=lin(6, 8), b=lin(6, 4), c=lin(8, 3)),
        of_sequence("windows", lambda a, b: a.unfold(1, 3, 1).mean(-1) + b[:, :3]),
    ]  # fmt: skip


def writes() -> list[Family]:
    return [
        of_sequence("rows scattered", lambda a, b: a.scatter(1, rows(a, 2, 8), b[:, :2])),
        net("a number scattered over some channels", _scattered, SEQUENCE,
            a=lin(6, 8), b=lin(6, 4), c=lin(8, 3), d=lin(4, 3)),
        of_sequence("rows added up", lambda a, b: a.scatter_add(1, rows(a, 5, 8), b)),
        of_sequence("rows added by index", lambda a, b: a.index_add(1, torch.tensor([0, 0, 2, 1, 1]), b)),
        of_sequence("rows copied by index", lambda a, b: a.index_copy(1, torch.tensor([0, 2]), b[:, :2])),
        net("rows of a mask put", _put_masked, SEQUENCE, a=lin(6, 8), b=lin(3, 8), c=lin(8, 3)),
        of_sequence("rows put", lambda a, b: _put(a, b)),
        net("some channels put", _put_channels, SEQUENCE, a=lin(6, 8), b=lin(6, 4), c=lin(8, 3), d=lin(4, 3)),
    ]  # fmt: skip


def _scattered(s: Any, x: Tensor) -> Any:
    return s.c(s.a(x).scatter(1, rows(x, 2, 1), 0.5)), s.d(s.b(x).sin())


def _masked(a: Tensor, b: Tensor) -> Tensor:
    chosen = torch.tensor([[True, False, True, True, False]]).expand(a.shape[:2])
    return a[chosen].view(a.shape[0], 3, 8) + b[:, :3]


def _put_masked(s: Any, x: Tensor) -> Any:
    """Rows of a parameter stand for some of the positions, which a mask names."""
    y = s.a(x)[0]
    y[torch.tensor([True, False, True, True, False])] = s.b.weight.t()
    return s.c(y)


def _put(a: Tensor, b: Tensor) -> Tensor:
    a[:, [0, 2]] = b[:, :2]
    return a


def _put_channels(s: Any, x: Tensor) -> Any:
    y, z = s.a(x), s.b(x)
    y[:, :, [0, 2]] = z[:, :, :2]
    return s.c(y), s.d(z.sin())


def transforms() -> list[Family]:
    return [
        of_sequence("spectrum of rows", lambda a, b: torch.fft.fft(a, dim=1).real * b),
        net("learned spectrum", _filtered, IMAGE, a=conv(3, 6), w=lin(60, 8), c=conv(6, 3)),
        net("tensordot", lambda s, x: s.c(torch.tensordot(s.a(x).view(-1, 2, 4), s.w.weight.view(2, 4, 6), dims=2)),
            VECTOR, a=lin(6, 8), w=lin(6, 8), c=lin(6, 3)),
        net("outer product of vectors", lambda s, x: s.c(s.a(x) @ torch.outer(s.w.bias, s.v.bias)), SEQUENCE,
            a=lin(6, 8), w=lin(4, 8), v=lin(4, 5), c=lin(5, 3)),
        net("distances", lambda s, x: s.c(torch.cdist(s.a(x), s.w.weight)), SEQUENCE,
            a=lin(6, 8), w=lin(8, 4), c=lin(4, 3)),
        net("grid of two vectors", _grid, SEQUENCE, a=lin(6, 8), w=lin(4, 8), v=lin(4, 5), c=lin(5, 3)),
        net("spectral norm", lambda s, x: s.c(s.a(x).sigmoid()), VECTOR,
            a=lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), c=lin(8, 3)),
        net("sampled", lambda s, x: s.c(F.grid_sample(s.a(x), s.g(x).permute(0, 2, 3, 1), align_corners=False)), IMAGE,
            a=conv(3, 8), g=conv(3, 2), c=conv(8, 3)),
        net("global response norm", _responses, SEQUENCE, a=lin(6, 8), w=lin(3, 8), c=lin(8, 3)),
    ]  # fmt: skip


def _filtered(s: Any, x: Tensor) -> Any:
    spectrum = torch.fft.rfft2(s.a(x).permute(0, 2, 3, 1), dim=(1, 2), norm="ortho")
    spectrum = spectrum * torch.view_as_complex(s.w.weight.view(8, 5, 6, 2))
    return s.c(torch.fft.irfft2(spectrum, s=(8, 8), dim=(1, 2), norm="ortho").permute(0, 3, 1, 2))


def _grid(s: Any, x: Tensor) -> Any:
    first, second = torch.meshgrid(s.w.bias, s.v.bias, indexing="ij")
    return s.c(s.a(x) @ (first * second))


def _responses(s: Any, x: Tensor) -> Any:
    y = s.a(x)
    norm = y.norm(p=2, dim=1, keepdim=True)
    return s.c(y + y * norm / (norm.mean(-1, keepdim=True) + 1e-6) * s.w.bias)
