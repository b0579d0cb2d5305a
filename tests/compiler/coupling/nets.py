"""Small nets, each with one way in which channels meet. The features in between are free: a head reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backends.to_onnx.families import Family
from tests.backends.to_onnx.family_base import Function, floats, integers

Forward = Callable[[Any, Tensor], Any]


def net(name: str, forward: Forward, inputs: Any, **layers: Callable[[], nn.Module]) -> Family:
    """``layers`` are made anew each time, after seeding."""
    return Family(name, lambda: Function(forward, **{key: make() for key, make in layers.items()}), inputs)


def lin(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs)


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(inputs, outputs, kernel, **options)


VECTOR, SEQUENCE, IMAGE = floats(6), floats(5, 6), floats(3, 8, 8)


def nets() -> list[Family]:
    return [*convolutions(), *norms(), *joints(), *layouts(), *products(), *recurrent(), *tables(), *over_channels()]


# ---------------------------------------------------------------------- layers


def convolutions() -> list[Family]:
    return [
        net("grouped convolution", lambda s, x: s.c(s.b(s.a(x)).relu()), IMAGE,
            a=conv(3, 8), b=conv(8, 12, 3, groups=2), c=conv(12, 4, 3)),
        net("depthwise convolution", lambda s, x: s.c(s.b(s.a(x)).relu()), IMAGE,
            a=conv(3, 8), b=conv(8, 8, 3, groups=8, padding="same"), c=conv(8, 4)),
        net("depthwise with multiplier", lambda s, x: s.c(s.b(s.a(x)).relu()), IMAGE,
            a=conv(3, 6), b=conv(6, 12, 3, groups=6), c=conv(12, 4)),
        net("transposed grouped convolution", lambda s, x: s.c(s.b(s.a(x)).relu()), IMAGE,
            a=conv(3, 8), b=lambda: nn.ConvTranspose2d(8, 12, 2, 2, groups=2), c=conv(12, 4, 3)),
        net("three dimensions", lambda s, x: s.c(s.n(s.a(x)).relu()), floats(2, 4, 6, 6),
            a=lambda: nn.Conv3d(2, 6, 3), n=lambda: nn.BatchNorm3d(6), c=lambda: nn.Conv3d(6, 3, (1, 3, 3))),
        net("one dimension, causal", lambda s, x: s.c(s.b(F.pad(s.a(x), (4, 0)))), SEQUENCE,
            a=lambda: nn.Conv1d(5, 8, 1), b=lambda: nn.Conv1d(8, 8, 3, dilation=2), c=lambda: nn.Conv1d(8, 2, 1)),
        net("features where positions stand", lambda s, x: s.c(s.m(s.a(x)[:, None].expand(-1, 2, -1, -1)).mean(1)),
            SEQUENCE, a=lin(6, 8), m=conv(2, 3), c=lin(8, 4)),
        net("weight norm", lambda s, x: s.c(s.a(x).sigmoid()), VECTOR,
            a=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)),
            c=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))),
        net("standardized weights", _standardized, IMAGE, a=conv(3, 8), b=conv(8, 6, 3), c=conv(6, 4)),
        net("patches", lambda s, x: s.c(F.unfold(s.a(x), 2, stride=2).mT), IMAGE, a=conv(3, 4), c=lin(16, 4)),
        net("patches put together", lambda s, x: s.c(F.fold(F.unfold(s.a(x), 2, stride=2) * 2, (8, 8), 2, stride=2)),
            IMAGE, a=conv(3, 4), c=conv(4, 4, 3)),
        net("pixel shuffle", lambda s, x: s.c(F.pixel_shuffle(s.a(x), 2)), IMAGE, a=conv(3, 16), c=conv(4, 4, 3)),
        net("pixel unshuffle", lambda s, x: s.c(F.pixel_unshuffle(s.a(x), 2)), IMAGE, a=conv(3, 4), c=conv(16, 4, 3)),
    ]  # fmt: skip


def _standardized(s: Any, x: Tensor) -> Any:
    weight = s.b.weight.flatten(1)[None]
    weight = F.batch_norm(weight, None, None, training=True).reshape(s.b.weight.shape)
    return s.c(F.conv2d(s.a(x).sigmoid(), weight, s.b.bias).relu())


def norms() -> list[Family]:
    def normed(name: str, norm: Callable[[], nn.Module]) -> Family:
        return net(name, lambda s, x: s.c(s.n(s.a(x)).relu()), IMAGE, a=conv(3, 8, 3), n=norm, c=conv(8, 4))

    return [
        normed("batch norm", lambda: nn.BatchNorm2d(8)),
        normed("batch norm without statistics", lambda: nn.BatchNorm2d(8, track_running_stats=False)),
        normed("instance norm", lambda: nn.InstanceNorm2d(8, affine=True)),
        normed("group norm", lambda: nn.GroupNorm(4, 8)),
        normed("one group", lambda: nn.GroupNorm(1, 8)),
        normed("as many groups as channels", lambda: nn.GroupNorm(8, 8)),
        normed("layer norm of all axes", lambda: nn.LayerNorm([8, 6, 6])),
        normed("slope per channel", lambda: nn.PReLU(8)),
        normed("one slope", lambda: nn.PReLU()),
        net("layer norm", lambda s, x: s.c(s.n(s.a(x))), VECTOR, a=lin(6, 8), n=lambda: nn.LayerNorm(8), c=lin(8, 3)),
        net("rms norm", lambda s, x: s.c(s.n(s.a(x))), VECTOR, a=lin(6, 8), n=lambda: nn.RMSNorm(8), c=lin(8, 3)),
        net("layer norm over cat", lambda s, x: s.c(s.n(torch.cat([s.a(x), s.b(x)], -1))), VECTOR,
            a=lin(6, 5), b=lin(6, 7), n=lambda: nn.LayerNorm(12), c=lin(12, 3)),
        net("group norm over misaligned cat", lambda s, x: s.d(s.n(torch.cat([s.a(x), s.b(x)], 1)).mean((2, 3))), IMAGE,
            a=conv(3, 10), b=conv(3, 6), n=lambda: nn.GroupNorm(4, 16), d=lin(16, 3)),
        net("normalized vectors", lambda s, x: s.c(F.normalize(s.a(x), dim=-1)), VECTOR, a=lin(6, 8), c=lin(8, 3)),
    ]  # fmt: skip


# ---------------------------------------------------------------------- where branches meet


def joints() -> list[Family]:
    return [
        net("residual", lambda s, x: s.c(s.a(x) + s.b(s.a(x)).relu()), VECTOR, a=lin(6, 8), b=lin(8, 8), c=lin(8, 3)),
        net("gate", lambda s, x: s.c(s.a(x) * s.b(x).sigmoid()), VECTOR, a=lin(6, 8), b=lin(6, 8), c=lin(8, 3)),
        net("squeeze and excite", lambda s, x: s.c(s.a(x) * s.e(s.r(s.a(x).mean((2, 3), True)).relu()).sigmoid()),
            IMAGE, a=conv(3, 8), r=conv(8, 4), e=conv(4, 8), c=conv(8, 3)),
        net("maximum of two", lambda s, x: s.c(torch.maximum(s.a(x), s.b(x))), VECTOR,
            a=lin(6, 8), b=lin(6, 8), c=lin(8, 3)),
        net("max of two", lambda s, x: s.c(torch.max(s.a(x), s.b(x))), VECTOR, a=lin(6, 8), b=lin(6, 8), c=lin(8, 3)),
        net("choice of two", lambda s, x: s.c(torch.where(s.a(x) > 0, s.a(x), s.b(x))), VECTOR,
            a=lin(6, 8), b=lin(6, 8), c=lin(8, 3)),
        net("cat", lambda s, x: s.c(torch.cat([s.a(x), s.b(x).relu()], 1)), VECTOR,
            a=lin(6, 5), b=lin(6, 7), c=lin(12, 3)),
        net("cat with itself", lambda s, x: (lambda y: s.c(torch.cat([y, -y], -1).relu()))(s.a(x)), VECTOR,
            a=lin(6, 8), c=lin(16, 3)),
        net("grouped convolution over misaligned cat", lambda s, x: s.c(s.n(torch.cat([s.a(x), s.b(x)], 1))), IMAGE,
            a=conv(3, 5), b=conv(3, 7), n=conv(12, 6, 1, groups=3), c=conv(6, 2, 3)),
        net("stack", lambda s, x: s.c(torch.stack([s.a(x), s.b(x)], -1).flatten(1)), VECTOR,
            a=lin(6, 8), b=lin(6, 8), c=lin(16, 3)),
        net("zero-padded shortcut", lambda s, x: s.c(s.b(s.a(x)).relu() + F.pad(s.a(x), (0, 0, 0, 0, 2, 2))), IMAGE,
            a=conv(3, 8), b=conv(8, 12), c=conv(12, 4, 3)),
        net("two outputs", lambda s, x: {"a": s.c(s.a(x)), "b": [s.d(s.a(x).relu())]}, VECTOR,
            a=lin(6, 8), c=lin(8, 3), d=lin(8, 5)),
        net("tied weights", lambda s, x: s.c(F.linear(F.linear(s.a(x), s.w.weight).tanh(), s.w.weight.t())), VECTOR,
            a=lin(6, 8), w=lin(8, 4), c=lin(8, 3)),
        net("layer used twice", lambda s, x: s.c(s.b(s.b(s.a(x)).relu())), VECTOR,
            a=lin(6, 8), b=lin(8, 8), c=lin(8, 3)),
        net("outer product", lambda s, x: s.c((s.a(x)[:, :, None] * s.b(x)[:, None]).flatten(1)), VECTOR,
            a=lin(6, 8), b=lin(6, 4), c=lin(32, 3)),
        net("outer product with itself", lambda s, x: (lambda y: s.c((y[:, :, None] * y[:, None]).flatten(1)))(s.a(x)),
            VECTOR, a=lin(6, 8), c=lin(64, 3)),
    ]  # fmt: skip


# ---------------------------------------------------------------------- moves


def layouts() -> list[Family]:
    def moved(name: str, move: Callable[[Tensor], Tensor], width: int = 8, read: int = 8) -> Family:
        return net(name, lambda s, x: s.c(move(s.a(x))), VECTOR, a=lin(6, width), c=lin(read, 3))

    return [
        moved("gated halves", F.glu, 16),
        moved("rotated halves", lambda y: y * 0.3 + torch.cat([-y[..., 4:], y[..., :4]], -1)),
        moved("chunks of unequal size", lambda y: torch.cat(y.chunk(3, -1)[::-1], -1)),
        moved("split", lambda y: torch.cat([part.sin() for part in y.split([3, 5], -1)[::-1]], -1)),
        moved("slice from the back", lambda y: torch.cat([y[:, -5:-2].sin(), y], -1), read=11),
        moved("every other channel", lambda y: torch.cat([y[:, 0::2], -y[:, 1::2]], 1)),
        moved("repeated as a whole", lambda y: y.repeat(1, 2), read=16),
        moved("tiled", lambda y: y[:, None].tile(2).flatten(1), read=16),
        moved("each repeated", lambda y: y.repeat_interleave(2, dim=-1), read=16),
        moved("each repeated, with the size", lambda y: y.repeat_interleave(2, dim=1, output_size=16), read=16),
        moved("expanded and flattened", lambda y: y[:, :, None].expand(-1, -1, 3).flatten(1), read=24),
        moved("axes permuted", lambda y: y.view(-1, 2, 3, 4).permute(0, 3, 1, 2).reshape(-1, 24), 24, 24),
        moved("squeezed", lambda y: y[:, None].squeeze(), 2, 2),
        moved("summed over heads", lambda y: y.view(-1, 4, 4).sum(1), 16, 4),
        moved("softmax over heads", lambda y: (y.view(-1, 4, 4).softmax(1) * y.view(-1, 4, 4)).sum(1), 16, 4),
        moved("batch folded in", lambda y: y.reshape(y.shape[0] * 8).view(y.shape[0], -1)),
        net("channel shuffle", lambda s, x: s.d(s.b(F.channel_shuffle(s.a(x), 3)).mean((2, 3))), IMAGE,
            a=conv(3, 12), b=conv(12, 8, 3, groups=4), d=lin(8, 3)),
        net("flattened image", lambda s, x: s.c(s.a(x).flatten(1)), IMAGE, a=conv(3, 4, 3, stride=2), c=lin(36, 3)),
        net("written into a slice", _written, VECTOR, a=lin(6, 2), b=lin(6, 8), c=lin(8, 3)),
        net("tokens mixed", lambda s, x: (lambda y: s.c(y + s.d(F.gelu(s.b(y.mT))).mT))(s.a(x)), SEQUENCE,
            a=lin(6, 8), b=lin(5, 7), d=lin(7, 5), c=lin(8, 3)),
    ]  # fmt: skip


def _written(s: Any, x: Tensor) -> Any:
    y = s.b(x)
    y[:, 2:4] += s.a(x)
    return s.c(y)


# ---------------------------------------------------------------------- products


def products() -> list[Family]:
    return [
        net("attention, fused projection", _fused, SEQUENCE, q=lin(6, 48), c=lin(16, 3)),
        net("attention, parts inside heads", _inside_heads, SEQUENCE, q=lin(6, 48), c=lin(16, 3)),
        net("attention, keys and values fused", _fused_in_part, SEQUENCE, q=lin(6, 16), k=lin(6, 32), c=lin(16, 3)),
        net("attention, grouped queries", _grouped, SEQUENCE, q=lin(6, 16), k=lin(6, 8), v=lin(6, 8), c=lin(16, 3)),
        net("attention, batch and heads folded", _folded, SEQUENCE,
            q=lin(6, 16), k=lin(6, 16), v=lin(6, 16), c=lin(16, 3)),
        net("attention of the library", lambda s, x: s.c(s.m(x, x, x)[0].mean(1)), floats(5, 8),
            m=lambda: nn.MultiheadAttention(8, 2, batch_first=True), c=lin(8, 3)),
        net("attention with position bias", _biased, SEQUENCE,
            q=lin(6, 48), t=lambda: nn.Embedding(25, 4), c=lin(16, 3)),
        net("linear attention", lambda s, x: s.c((s.q(x).exp() @ (s.k(x).exp().mT @ s.a(x))).mean(1)), SEQUENCE,
            q=lin(6, 8), k=lin(6, 8), a=lin(6, 8), c=lin(8, 3)),
        net("learned queries, causal", lambda s, x: s.c(F.scaled_dot_product_attention(
            s.q.weight.expand(x.shape[0], 6, 8), s.a(x), s.a(x), is_causal=True).mean(1)), SEQUENCE,
            q=lin(8, 6), a=lin(6, 8), c=lin(8, 3)),
        net("einsum", lambda s, x: s.c(torch.einsum("bnd,bmd->bnm", s.a(x), s.b(x)) @ s.v(x)), SEQUENCE,
            a=lin(6, 8), b=lin(6, 8), v=lin(6, 8), c=lin(8, 3)),
        net("bilinear", lambda s, x: s.c(s.b(s.a(x), s.a(x))), VECTOR,
            a=lin(6, 8), b=lambda: nn.Bilinear(8, 8, 6), c=lin(6, 3)),
        net("addmm", lambda s, x: s.c(torch.addmm(s.b.bias, x, s.b.weight.t())), VECTOR, b=lin(6, 8), c=lin(8, 3)),
        net("cosine similarity", lambda s, x: F.cosine_similarity(s.a(x), s.b(x), dim=-1), VECTOR,
            a=lin(6, 8), b=lin(6, 8)),
    ]  # fmt: skip


def _heads(y: Tensor, heads: int = 4) -> Tensor:
    return y.view(y.shape[0], 5, heads, -1).transpose(1, 2)


def _fused(s: Any, x: Tensor) -> Any:
    q, k, v = s.q(x).reshape(-1, 5, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return s.c(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 16))


def _inside_heads(s: Any, x: Tensor) -> Any:
    parts = s.q(x).view(-1, 5, 4, 3, 4)
    q, k, v = (parts[..., index, :].transpose(1, 2) for index in range(3))
    return s.c(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _fused_in_part(s: Any, x: Tensor) -> Any:
    q, (k, v) = _heads(s.q(x)), s.k(x.mT[:, :, :4].mT).unflatten(-1, (2, 4, 4)).permute(2, 0, 3, 1, 4)
    return s.c(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _grouped(s: Any, x: Tensor) -> Any:
    q, k, v = _heads(s.q(x)), _heads(s.k(x), 2), _heads(s.v(x), 2)
    return s.c(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def _folded(s: Any, x: Tensor) -> Any:
    q, k, v = (_heads(layer(x)).reshape(x.shape[0] * 4, 5, 4) for layer in (s.q, s.k, s.v))
    attended = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v)
    return s.c(attended.view(-1, 4, 5, 4).transpose(1, 2).reshape(-1, 5, 16))


def _biased(s: Any, x: Tensor) -> Any:
    q, k, v = s.q(x).reshape(-1, 5, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
    bias = s.t.weight[torch.arange(25)].view(5, 5, 4).permute(2, 0, 1)
    return s.c(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


# ---------------------------------------------------------------------- memory and tables


def recurrent() -> list[Family]:
    return [
        net("LSTM of two layers and directions", lambda s, x: s.c(s.r(x)[0][:, -1]), SEQUENCE,
            r=lambda: nn.LSTM(6, 6, 2, batch_first=True, bidirectional=True), c=lin(12, 3)),
        net("LSTM of three layers, its last state", lambda s, x: s.c(s.r(x)[1][0][-1]), SEQUENCE,
            r=lambda: nn.LSTM(6, 6, 3, batch_first=True, dropout=0.3), c=lin(6, 3)),
        net("GRU, last states", lambda s, x: s.c(s.r(x)[1].transpose(0, 1).flatten(1)), SEQUENCE,
            r=lambda: nn.GRU(6, 6, 2, batch_first=True, bidirectional=True), c=lin(24, 3)),
        net("RNN, time first", lambda s, x: s.c(s.r(x.transpose(0, 1))[0].mean(0)), SEQUENCE,
            r=lambda: nn.RNN(6, 8, nonlinearity="relu"), c=lin(8, 3)),
        net("LSTM with projection", lambda s, x: s.c(s.r(x)[0].mean(1)), SEQUENCE,
            r=lambda: nn.LSTM(6, 6, batch_first=True, proj_size=3), c=lin(3, 3)),
        net("cells", lambda s, x: s.c(s.d(s.b(x[:, 0], s.b(x[:, 1])))), SEQUENCE,
            b=lambda: nn.GRUCell(6, 6), d=lambda: nn.RNNCell(6, 8), c=lin(8, 3)),
        net("LSTM cell", lambda s, x: s.c(s.b(x[:, 1], s.b(x[:, 0]))[0]), SEQUENCE,
            b=lambda: nn.LSTMCell(6, 6), c=lin(6, 3)),
    ]  # fmt: skip


def tables() -> list[Family]:
    return [
        net("tied embedding", lambda s, x: F.linear(s.b(s.e(x)).relu() + s.e(x), s.e.weight), integers(20, 5),
            e=lambda: nn.Embedding(20, 8), b=lin(8, 8)),
        net("bag", lambda s, x: s.c(s.e(x)), integers(50, 6),
            e=lambda: nn.EmbeddingBag(50, 8, mode="mean"), c=lin(8, 3)),
        net("constants filled in", lambda s, x: s.c(s.a(x) + torch.zeros(8).fill_(0.3) + torch.arange(8)), VECTOR,
            a=lin(6, 8), c=lin(8, 3)),
    ]  # fmt: skip


def over_channels() -> list[Family]:
    def read(name: str, reduce: Callable[[Tensor], Tensor]) -> Family:
        return net(f"{name} of channels", lambda s, x: s.c(s.a(x) * reduce(s.b(x).sigmoid())), SEQUENCE,
                   a=lin(6, 8), b=lin(6, 8), c=lin(8, 3))  # fmt: skip

    return [
        read("mean", lambda y: y.mean(-1, keepdim=True)),
        read("standard deviation", lambda y: y.std(-1, keepdim=True)),
        read("largest", lambda y: y.amax(-1, keepdim=True)),
        read("norm", lambda y: y.norm(dim=-1, keepdim=True)),
        read("logsumexp", lambda y: y.logsumexp(-1, keepdim=True)),
        read("variance and mean", lambda y: torch.add(*torch.var_mean(y, dim=-1, keepdim=True))),
    ]
