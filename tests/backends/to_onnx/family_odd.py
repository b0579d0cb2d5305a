"""Odd inputs and outputs, writes in place, and operators by the dozen."""

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
        Family("integers", lambda: Function(_integer_arithmetic), integers(100, 5)),
        Family("no-grad", _frozen, floats(4)),
        Family("transformer-encoder", _encoder, floats(5, 8)),
        Family("transformer-decoder", _decoder, lambda b: Inputs((torch.randn(b, 5, 8), torch.randn(b, 7, 8)))),
        Family(
            "attention-forms",
            lambda: Function(_attention),
            lambda b: Inputs((torch.randn(b, 2, 3, 5, 8), torch.randn(b, 6, 4, 8))),
        ),
        Family("einsum-and-fft-free", lambda: Function(_products), floats(4, 6)),
        Family("sorting", lambda: Function(_sorting), floats(4, 6)),
        Family("sampling-grid", lambda: Function(_grid), floats(3, 8, 8)),
        Family("half-precision", _half, floats(3, 8, 8), tolerance=2e-3),
        Family(
            "bilinear",
            lambda: Function(lambda self, x: self.layer(x, x.flip(-1)), layer=nn.Bilinear(4, 4, 3)),
            floats(4),
        ),
        Family("autoregressive-mask", lambda: Function(_triangle), floats(6, 8)),
        Family("elementwise", lambda: Function(_elementwise), floats(4, 6)),
        Family("fourier", lambda: Function(lambda self, x: torch.fft.rfft(x, dim=-1).abs()), floats(16)),
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


def _integer_arithmetic(self: Any, x: Tensor) -> Any:
    return (
        x // 3,
        x % 7,
        -x // 4,
        x / 2,
        torch.div(x, 3, rounding_mode="trunc"),
        x.float().fmod(3),
        (x & 5) | 2,
        x ^ 3,
        x << 1,
        x >> 1,
        x**2,
        x.max(),
        F.one_hot(x % 5, 5),
        x.remainder(6),
        x.float().floor_divide(2.5),
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


def _products(self: Any, x: Tensor) -> Any:
    return (
        torch.einsum("bij,bkj->bik", x, x),
        torch.einsum("bij,bij->b", x, x),
        torch.tensordot(x, x[0], dims=([2], [1])),
        x[:, 0] @ x[0].t(),
        torch.outer(x[0, 0], x[0, 1]),
        x.cumsum(1),
        x.prod(-1),
        torch.bmm(x, x.mT),
        x.logsumexp(-1),
        torch.baddbmm(x @ x.mT, x, x.mT),
        torch.linalg.vector_norm(x, dim=-1),
        x.norm(p=1, dim=1),
        x.var(-1),
        x.std((1, 2)),
        torch.var_mean(x, dim=-1)[1],
        x.median(-1).values,
        torch.dot(x[0, 0], x[0, 1]),
    )


def _sorting(self: Any, x: Tensor) -> Any:
    values, order = x.sort(-1, descending=True)
    return (
        values,
        order,
        x.topk(2, dim=1)[0],
        x.argsort(-1),
        x.gather(1, order[:, :4] % 4),
        x.index_select(1, torch.tensor([3, 0])),
        x[:, [2, 1]],
        x.scatter(1, order[:, :4] % 4, 0.5),
        x.scatter_add(2, order, x),
        x.take_along_dim(order, -1),
        x.kthvalue(2, -1).values,
        x.roll((1, -2), (1, 2)),
        x.roll(3),
        x.flip((1, 2)),
        x.repeat_interleave(2, dim=1),
        x.unfold(1, 2, 1),
        x.diagonal(0, 1, 2),
        torch.meshgrid(x[0, 0], x[0, 1], indexing="ij")[0],
    )


def _grid(self: Any, x: Tensor) -> Tensor:
    theta = torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 1.1, 0.2]]]).expand(x.shape[0], -1, -1)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def _half() -> nn.Module:
    return Function(lambda self, x: self.layer(x.half()).float(), layer=nn.Conv2d(3, 4, 3).half())


def _triangle(self: Any, x: Tensor) -> Tensor:
    t = x.shape[1]
    mask = torch.triu(torch.full((t, t), float("-inf")), diagonal=1)
    return torch.softmax(x @ x.mT + mask, -1).tril() @ x


def _elementwise(self: Any, x: Tensor) -> Any:
    p = x.abs() + 0.1
    return (
        x.exp(),
        p.log(),
        p.log2(),
        p.log1p(),
        x.expm1(),
        p.sqrt(),
        p.rsqrt(),
        x.sin(),
        x.cos(),
        x.tan(),
        x.atan(),
        x.tanh().asin(),
        x.tanh().acos(),
        x.sinh(),
        x.cosh(),
        x.asinh(),
        p.add(1).acosh(),
        x.tanh().mul(0.9).atanh(),
        x.erf(),
        x.erfc(),
        x.sign(),
        x.round(),
        x.trunc(),
        x.frac(),
        x.floor(),
        x.ceil(),
        p.pow(1.7),
        2**x,
        x.square(),
        p.reciprocal(),
        torch.atan2(x, p),
        torch.hypot(x, p),
        x.clamp(-1),
        torch.clamp(x, x - 1, p),
        torch.addcmul(x, p, x, value=0.5),
        torch.addcdiv(x, x, p),
        torch.lerp(x, p, 0.3),
        x.logaddexp(p),
        F.logsigmoid(x),
        F.silu(x),
        F.softmin(x, -1),
        F.rrelu(x),
        F.hardshrink(x),
        F.softshrink(x),
        F.threshold(x, 0.1, 20.0),
        x.nan_to_num(),
        p.exp2(),
        x.sub(p, alpha=2),
        torch.rsub(x, 1),
        x.fmod(1.5),
        x.remainder(1.5),
        torch.maximum(x, p),
        x.isfinite(),
        x.isinf(),
        F.gelu(x, approximate="tanh"),
        p.log10(),
        x.sgn(),
        x.xlogy(p),
        x.copysign(p - 1),
        x.heaviside(p),
        x.deg2rad(),
        F.normalize(x),
        x.dist(p),
    )
