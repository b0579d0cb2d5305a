"""Operators by the dozen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.to_onnx.families import Family
from tests.backends.to_onnx.family_base import Function, floats, integers


def operators() -> list[Family]:
    return [
        Family("integers", lambda: Function(_integer_arithmetic), integers(100, 5)),
        Family("einsum-and-fft-free", lambda: Function(_products), floats(4, 6)),
        Family("sorting", lambda: Function(_sorting), floats(4, 6)),
        Family("sampling-grid", lambda: Function(_grid), floats(3, 8, 8)),
        Family("half-precision", _half, floats(3, 8, 8), tolerance=2e-3),
        Family(
            "bilinear",
            lambda: Function(lambda self, x: self.layer(x, x.flip(-1)), layer=nn.Bilinear(4, 4, 3)),
            floats(4),
        ),
        Family("elementwise", lambda: Function(_elementwise), floats(4, 6)),
        Family("fourier", lambda: Function(lambda self, x: torch.fft.rfft(x, dim=-1).abs()), floats(16)),
    ]


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
