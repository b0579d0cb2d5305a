"""Hand-written nets: recurrence, audio, volumes, segmentation, odd inputs and outputs, writes in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.compiler.inputs import Inputs
from tests.backends.to_onnx.families import Family


class Function(nn.Module):
    """A function of tensors as a module, with the layers it uses."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def floats(*shape: int) -> Callable[[int], Inputs]:
    return lambda batch: Inputs((torch.randn(batch, *shape),))


def integers(high: int, *shape: int) -> Callable[[int], Inputs]:
    return lambda batch: Inputs((torch.randint(0, high, (batch, *shape)),))


def families() -> list[Family]:
    return [*recurrent(), *convolutional(), *odd()]


# ---------------------------------------------------------------------- recurrence


def recurrent() -> list[Family]:
    made = []
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        for first in (True, False):
            for both in (True, False):
                for layers in (1, 2):
                    name = f"{kind.__name__}-{'batch' if first else 'time'}-first-{layers}{'-both' if both else ''}"
                    made.append(_recurrent_family(name, kind, first, both, layers))
    made.append(_recurrent_family("RNN-relu", nn.RNN, True, True, 1, nonlinearity="relu"))
    made.append(_recurrent_family("LSTM-without-bias", nn.LSTM, True, False, 1, bias=False))
    made.append(_recurrent_family("GRU-without-bias", nn.GRU, True, True, 1, bias=False))
    made.append(_recurrent_family("LSTM-projected", nn.LSTM, True, False, 1, proj_size=3))
    cell = Function(_cells, lstm=nn.LSTMCell(5, 7), gru=nn.GRUCell(7, 6), rnn=nn.RNNCell(6, 4))
    return [*made, Family("cells", lambda: cell, floats(4, 5)), Family("LSTM-with-state", _stateful, _state_inputs)]


def _recurrent_family(name: str, kind: Any, first: bool, both: bool, layers: int, **options: Any) -> Family:
    def build() -> nn.Module:
        layer = kind(5, 6, num_layers=layers, batch_first=first, bidirectional=both, **options)
        return Function(_run_recurrent if first else _run_time_first, layer=layer)

    return Family(name, build, floats(4, 5))


def _run_recurrent(self: Any, x: Tensor) -> Any:
    return self.layer(x)


def _run_time_first(self: Any, x: Tensor) -> Any:
    return self.layer(x.transpose(0, 1))


def _cells(self: Any, x: Tensor) -> Any:
    h, c = self.lstm(x[:, 0])
    h, c = self.lstm(x[:, 1], (h, c))
    return self.rnn(self.gru(h)), c


def _stateful() -> nn.Module:
    return Function(lambda self, x, h, c: self.layer(x, (h.transpose(0, 1), c.transpose(0, 1))), layer=nn.LSTM(5, 6, 2, batch_first=True))


def _state_inputs(batch: int) -> Inputs:
    return Inputs((torch.randn(batch, 4, 5), torch.randn(batch, 2, 6), torch.randn(batch, 2, 6)))


# ---------------------------------------------------------------------- convolution


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
        nn.Conv1d(1, 8, 10, 5, bias=False), nn.GroupNorm(8, 8), nn.GELU(), nn.Conv1d(8, 8, 3, 2, padding="valid"), nn.GELU(),
        nn.Conv1d(8, 16, 3, padding="same", dilation=2), nn.BatchNorm1d(16), nn.GLU(dim=1), nn.AdaptiveMaxPool1d(4), nn.Flatten(),
        nn.Linear(32, 5), nn.LogSoftmax(dim=-1),
    )  # fmt: skip


def _volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(inplace=True), nn.MaxPool3d((1, 2, 2)), nn.Conv3d(4, 8, (3, 1, 1)),
        nn.InstanceNorm3d(8, affine=True), nn.LeakyReLU(0.1), nn.AvgPool3d(2), nn.ConvTranspose3d(8, 4, 2, 2), nn.AdaptiveAvgPool3d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


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
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, bias=False), nn.BatchNorm2d(6), nn.PReLU(6),
        nn.ConvTranspose2d(6, 4, 4, 2, 1, groups=2), nn.SELU(), nn.ConvTranspose2d(4, 2, 3, dilation=2), nn.Tanh(),
    )  # fmt: skip


def _padded() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.ReflectionPad2d((1, 2, 0, 1)), nn.ReplicationPad2d(1),
        nn.ConstantPad2d((1, 0, -1, 2), 0.5), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, stride=2), nn.Hardswish(), nn.ELU(),
    )  # fmt: skip


def _super_resolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Mish(), nn.PixelShuffle(2), nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Upsample(size=(33, 31), mode="bicubic"), nn.PixelUnshuffle(1), nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.CELU(),
    )  # fmt: skip


def _shuffle() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ChannelShuffle(4), nn.Conv2d(8, 12, 1, groups=4), nn.ReLU6(), nn.Unfold(3, stride=2))


def _two_tower() -> nn.Module:
    def run(self: Any, a: Tensor, b: Tensor) -> tuple[Tensor, list[Tensor]]:
        u, v = F.normalize(self.left(a), dim=-1), F.normalize(self.right(b).flatten(1), dim=-1)
        return u @ v.t(), [F.cosine_similarity(u, v), torch.cdist(u, v)]

    return Function(run, left=nn.Linear(8, 12), right=nn.Sequential(nn.Conv2d(3, 3, 3, 4), nn.AvgPool2d(2)))


def _pools(self: Any, x: Tensor) -> tuple[Tensor, ...]:
    return (
        F.max_pool2d(x, 3, 2, 1, ceil_mode=True), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), F.avg_pool2d(x, 2, ceil_mode=True),
        F.adaptive_avg_pool2d(x, (5, 4)), F.adaptive_max_pool2d(x, (3, 2)), F.max_pool2d(x, 2, return_indices=True)[1],
        F.lp_pool2d(x, 2, 3), F.avg_pool2d(x, 3, 1, 1, divisor_override=5), F.local_response_norm(x, 3), x.mean((2, 3)), x.amax((-1,)),
    )  # fmt: skip


def _norms() -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm([6, 8, 8]), nn.GroupNorm(3, 6), nn.InstanceNorm2d(6), nn.BatchNorm2d(6, track_running_stats=False), nn.RMSNorm(8),
        nn.LayerNorm(8, bias=False), nn.LayerNorm(8, elementwise_affine=False), nn.Softmax2d(), nn.Softplus(2.0), nn.Hardtanh(-0.3, 0.4),
    )  # fmt: skip


def _excite() -> nn.Module:
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.SiLU(inplace=True), nn.Conv2d(4, 8, 1), nn.Hardsigmoid())
    return Function(lambda self, x: self.body(x) * self.gate(self.body(x)), body=nn.Conv2d(8, 8, 3, padding="same"), gate=gate)


def _weight_norm() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 3))
    return nn.Sequential(layer, nn.Softsign(), nn.utils.parametrizations.spectral_norm(nn.Linear(18, 4)), nn.Hardshrink(), nn.Tanhshrink())


# ---------------------------------------------------------------------- odd inputs, outputs and writes


def odd() -> list[Family]:
    return [
        Family("embedding-bag", _bag, integers(50, 6)),
        Family("embedding-bag-weighted", _weighted_bag, lambda b: Inputs((torch.randint(0, 50, (b, 6)), torch.rand(b, 6)))),
        Family("writes-in-place", lambda: Function(_writes), floats(4, 6)),
        Family("writes-into-buffer", _buffer_writes, floats(4)),
        Family("masks", lambda: Function(_masks), floats(4, 6)),
        Family("dynamic-sizes", lambda: Function(_sizes), floats(4, 6)),
        Family("outputs", _outputs, floats(4)),
        Family("integers", lambda: Function(_integer_arithmetic), integers(100, 5)),
        Family("no-grad", _frozen, floats(4)),
        Family("transformer-encoder", _encoder, floats(5, 8)),
        Family("transformer-decoder", _decoder, lambda b: Inputs((torch.randn(b, 5, 8), torch.randn(b, 7, 8)))),
        Family("attention-forms", lambda: Function(_attention), lambda b: Inputs((torch.randn(b, 2, 3, 5, 8), torch.randn(b, 6, 4, 8)))),
        Family("einsum-and-fft-free", lambda: Function(_products), floats(4, 6)),
        Family("sorting", lambda: Function(_sorting), floats(4, 6)),
        Family("sampling-grid", lambda: Function(_grid), floats(3, 8, 8)),
        Family("half-precision", _half, floats(3, 8, 8)),
        Family("bilinear", lambda: Function(lambda self, x: self.layer(x, x.flip(-1)), layer=nn.Bilinear(4, 4, 3)), floats(4)),
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
        x.masked_fill(mask, -1.0), torch.where(mask, x, x * 2), x * mask, mask.sum(-1), mask.any(-1), mask.all(1), (~mask).float().mean(),
        torch.logical_xor(mask, x < 1), x.masked_fill(mask & (x < 1), 0.0), torch.isnan(x / x.clamp(min=0)), mask.to(torch.int32).cumsum(-1),
    )  # fmt: skip


def _sizes(self: Any, x: Tensor) -> Any:
    b, t, c = x.shape
    positions = torch.arange(b * t, device=x.device).reshape(b, t)
    flat = x.reshape(b * t, c)
    pieces = flat.view(b, -1)[:, : t * 2]
    return positions, flat.sum(0) / (b * t), pieces, x.new_full((b, 2), float("-inf")), torch.zeros(b, t + 1), x.expand(2, b, t, c), x.repeat(2, 1, 1)


def _outputs() -> nn.Module:
    return Function(lambda self, x: {"a": x, "b": (self.l(x), None, [x.sum(), 3]), "c": x.shape[0], "d": self.l.bias}, l=nn.Linear(4, 2))


def _integer_arithmetic(self: Any, x: Tensor) -> Any:
    return (
        x // 3, x % 7, -x // 4, x / 2, torch.div(x, 3, rounding_mode="trunc"), x.float().fmod(3), (x & 5) | 2, x ^ 3, x << 1, x >> 1, x**2,
        torch.bincount(x.flatten() * 0, minlength=1) if False else x.max(), F.one_hot(x % 5, 5), x.remainder(6), x.float().floor_divide(2.5),
    )  # fmt: skip


def _frozen() -> nn.Module:
    def run(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x)
        with torch.autocast("cpu", enabled=False):
            return self.b(y) + y.detach()

    return Function(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4))


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2, enable_nested_tensor=False)


def _decoder() -> nn.Module:
    def run(self: Any, x: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        out: Tensor = self.layers(x, memory, tgt_mask=mask)
        return out

    return Function(run, layers=nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2))


def _attention(self: Any, windows: Tensor, heads: Tensor) -> Any:
    queries, keys = heads, heads[:, :2]
    mask = torch.ones(4, 4).tril().bool()
    return (
        F.scaled_dot_product_attention(windows, windows, windows), F.scaled_dot_product_attention(queries, keys, keys, enable_gqa=True),
        F.scaled_dot_product_attention(queries, queries, queries, is_causal=True), F.scaled_dot_product_attention(heads[:, 0], heads[:, 1], heads[:, 2]),
        F.scaled_dot_product_attention(queries, queries, queries, attn_mask=mask, scale=0.3),
        F.scaled_dot_product_attention(queries, queries, queries, attn_mask=mask.float()),
    )  # fmt: skip


def _products(self: Any, x: Tensor) -> Any:
    return (
        torch.einsum("bij,bkj->bik", x, x), torch.einsum("bij,bij->b", x, x), torch.tensordot(x, x[0], dims=([2], [1])),
        x[:, 0] @ x[0].t(), torch.outer(x[0, 0], x[0, 1]), x.cumsum(1), x.prod(-1), torch.bmm(x, x.mT), x.logsumexp(-1), torch.baddbmm(x @ x.mT, x, x.mT),
        torch.linalg.vector_norm(x, dim=-1), x.norm(p=1, dim=1), x.var(-1), x.std((1, 2)), torch.var_mean(x, dim=-1)[1], x.median(-1).values, torch.dot(x[0, 0], x[0, 1]),
    )  # fmt: skip


def _sorting(self: Any, x: Tensor) -> Any:
    values, order = x.sort(-1, descending=True)
    return (
        values, order, x.topk(2, dim=1)[0], x.argsort(-1), x.gather(1, order[:, :4] % 4), x.index_select(1, torch.tensor([3, 0])), x[:, [2, 1]],
        x.scatter(1, order[:, :4] % 4, 0.5), x.scatter_add(2, order, x), x.take_along_dim(order, -1), x.kthvalue(2, -1).values, x.roll((1, -2), (1, 2)),
        x.roll(3), x.flip((1, 2)), x.repeat_interleave(2, dim=1), x.unfold(1, 2, 1), x.diagonal(0, 1, 2), torch.meshgrid(x[0, 0], x[0, 1], indexing="ij")[0],
    )  # fmt: skip


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
        x.exp(), p.log(), p.log2(), p.log1p(), x.expm1(), p.sqrt(), p.rsqrt(), x.sin(), x.cos(), x.tan(), x.atan(), x.tanh().asin(), x.tanh().acos(),
        x.sinh(), x.cosh(), x.asinh(), p.add(1).acosh(), x.tanh().mul(0.9).atanh(), x.erf(), x.erfc(), x.sign(), x.round(), x.trunc(), x.frac(), x.floor(), x.ceil(),
        p.pow(1.7), 2**x, x.square(), p.reciprocal(), torch.atan2(x, p), torch.hypot(x, p), x.clamp(-1), torch.clamp(x, x - 1, p), torch.addcmul(x, p, x, value=0.5),
        torch.addcdiv(x, x, p), torch.lerp(x, p, 0.3), x.logaddexp(p), F.logsigmoid(x), F.silu(x), F.softmin(x, -1), F.rrelu(x), F.hardshrink(x), F.softshrink(x),
        F.threshold(x, 0.1, 20.0), x.nan_to_num(), p.exp2(), x.sub(p, alpha=2), torch.rsub(x, 1), x.fmod(1.5), x.remainder(1.5), torch.maximum(x, p), x.digamma() * 0,
        x.isfinite(), x.isinf(), F.gelu(x, approximate="tanh"), p.log10(), x.sgn(), x.xlogy(p), x.copysign(p - 1), x.heaviside(p), x.deg2rad(), F.normalize(x), x.dist(p),
    )  # fmt: skip
