"""Odd inputs and outputs, writes in place, attention in all its forms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.compiler.inputs import Inputs
from tests.backends.to_onnx.families import Family
from tests.backends.to_onnx.family_base import Function, floats, integers


def odd() -> list[Family]:
    return [
        Family("embedding-bag", _bag, integers(50, 6)),
        Family(
            "embedding-bag-weighted", _weighted_bag, lambda b: Inputs((torch.randint(0, 50, (b, 6)), torch.rand(b, 6)))
        ),
        Family("writes-in-place", lambda: Function(_writes), floats(4, 6)),
        Family("writes-into-buffer", _buffer_writes, floats(4)),
        Family("masks", lambda: Function(_masks), floats(4, 6)),
        Family("dynamic-sizes", lambda: Function(_sizes), floats(4, 6)),
        Family("outputs", _outputs, floats(4)),
        Family("no-grad", _frozen, floats(4)),
        Family("transformer-encoder", _encoder, floats(5, 8)),
        Family("transformer-decoder", _decoder, lambda b: Inputs((torch.randn(b, 5, 8), torch.randn(b, 7, 8)))),
        Family(
            "attention-forms",
            lambda: Function(_attention),
            lambda b: Inputs((torch.randn(b, 2, 3, 5, 8), torch.randn(b, 6, 4, 8))),
        ),
        Family("autoregressive-mask", lambda: Function(_triangle), floats(6, 8)),
    ]


def _bag() -> nn.Module:
    bags = {mode: nn.EmbeddingBag(50, 8, mode=mode) for mode in ("sum", "mean", "max")}
    return Function(lambda self, x: tuple(bag(x) for bag in self.children()), **bags)


def _weighted_bag() -> nn.Module:
    return Function(lambda self, x, w: self.bag(x, per_sample_weights=w), bag=nn.EmbeddingBag(50, 8, mode="sum"))


def _writes(self: Any, x: Tensor) -> Any:
    y = x.clone()
    y[:, 0] = 1.5
    y[:, 1:3, 2] += x[:, 0:2, 1]
    y[:, :, -1].fill_(2.0)
    z = torch.zeros_like(x)
    z[..., ::2] = x[..., ::2]
    z[:, torch.tensor([0, 2])] = x[:, :2]
    z[z > 1] = -1.0
    y[:, 3].copy_(x[:, 0])
    y.clamp_(-1, 1)
    return y, z.mul_(2).add_(y)


def _buffer_writes() -> nn.Module:
    class Counter(nn.Module):
        grid: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("grid", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            grid = self.grid.clone()
            grid[1:3] = torch.tensor([1.0, 2.0])
            return x + grid

    return Counter()


def _masks(self: Any, x: Tensor) -> Any:
    mask = x > 0
    return (
        x.masked_fill(mask, -1.0),
        torch.where(mask, x, x * 2),
        x * mask,
        mask.sum(-1),
        mask.any(-1),
        mask.all(1),
        (~mask).float().mean(),
        torch.logical_xor(mask, x < 1),
        x.masked_fill(mask & (x < 1), 0.0),
        torch.isnan(x / x.clamp(min=0)),
        mask.to(torch.int32).cumsum(-1),
    )


def _sizes(self: Any, x: Tensor) -> Any:
    b, t, c = x.shape
    positions = torch.arange(b * t, device=x.device).reshape(b, t)
    flat = x.reshape(b * t, c)
    pieces = flat.view(b, -1)[:, : t * 2]
    return (
        positions,
        flat.sum(0) / (b * t),
        pieces,
        x.new_full((b, 2), float("-inf")),
        torch.zeros(b, t + 1),
        x.expand(2, b, t, c),
        x.repeat(2, 1, 1),
    )


def _outputs() -> nn.Module:
    return Function(
        lambda self, x: {"a": x, "b": (self.l(x), None, [x.sum(), 3]), "c": x.shape[0], "d": self.l.bias},
        l=nn.Linear(4, 2),
    )


def _frozen() -> nn.Module:
    def run(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x)
        with torch.autocast("cpu", enabled=False):
            return self.b(y) + y.detach()

    return Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4))


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
    )


def _decoder() -> nn.Module:
    def run(self: Any, x: Tensor, memory: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        out: Tensor = self.layers(x, memory, tgt_mask=mask, tgt_is_causal=False)
        return out

    return Function(run, layers=nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2))


def _attention(self: Any, windows: Tensor, heads: Tensor) -> Any:
    queries, keys = heads, heads[:, :2]
    mask = torch.ones(4, 4).tril().bool()
    return (
        F.scaled_dot_product_attention(windows, windows, windows),
        F.scaled_dot_product_attention(queries, keys, keys, enable_gqa=True),
        F.scaled_dot_product_attention(queries, queries, queries, is_causal=True),
        F.scaled_dot_product_attention(heads[:, 0], heads[:, 1], heads[:, 2]),
        F.scaled_dot_product_attention(queries, queries, queries, attn_mask=mask, scale=0.3),
        F.scaled_dot_product_attention(queries, queries, queries, attn_mask=mask.float()),
    )


def _triangle(self: Any, x: Tensor) -> Tensor:
    t = x.shape[1]
    mask = torch.triu(torch.full((t, t), float("-inf")), diagonal=1)
    return torch.softmax(x @ x.mT + mask, -1).tril() @ x
