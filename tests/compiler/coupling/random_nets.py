"""Random nets: a list of steps, each an op on values made so far, small enough to shrink to the one that matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Run = Callable[[Tensor, Tensor], Tensor]
Step = tuple[int, int, int, int]
"""Which op, on which value, with which other value, and a number that the op takes its sizes from."""
Made = tuple[Run, int] | None
"""What to run, and how many channels it gives; None where the op does not fit the channels it would get."""

WIDTHS = (4, 6, 8, 12)
WIDEST = 48


def steps(ops: tuple[Any, ...]) -> st.SearchStrategy[list[Step]]:
    step = st.tuples(st.integers(0, len(ops) - 1), st.integers(0, 5), st.integers(0, 5), st.integers(0, 11))
    return st.lists(step, min_size=2, max_size=9)


class RandomNet(nn.Module):
    """Applies ``listed`` steps; a head reads every value that was made. Channels are axis ``axis``."""

    def __init__(self, first: nn.Module, width: int, ops: tuple[Any, ...], listed: list[Step], axis: int):
        super().__init__()
        self.first, self.layers, self.axis = first, nn.ModuleList(), axis
        self.program: list[tuple[Run, int, int]] = []
        widths = [width]
        for op, value, other, number in listed:
            source, second = value % len(widths), other % len(widths)
            made = ops[op](self, widths[source], widths[second], number)
            if made is not None and made[1] <= WIDEST:
                self.program.append((made[0], source, second))
                widths.append(made[1])
        self.heads = nn.ModuleList(nn.Linear(width, 3) for width in widths)

    def add(self, layer: nn.Module) -> nn.Module:
        self.layers.append(layer)
        return layer

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [self.first(x)]
        for run, source, second in self.program:
            values.append(run(values[source], values[second]))
        return [
            head(value.movedim(self.axis, -1).flatten(1, -2).mean(1))
            for head, value in zip(self.heads, values, strict=True)
        ]


def divisor(number: int, *of: int) -> int:
    """Some common divisor, 1 if there is no other."""
    common = [size for size in (2, 3, 4, 6) if all(each % size == 0 for each in of)]
    return common[number % len(common)] if common else 1


# ---------------------------------------------------------------------- on channels, whichever axis they are


def _activation(net: RandomNet, width: int, other: int, number: int) -> Made:
    run = (F.gelu, torch.sigmoid, F.silu, torch.tanh)[number % 4]
    return lambda x, y: run(x), width


def _add(net: RandomNet, width: int, other: int, number: int) -> Made:
    return (lambda x, y: x + y.sigmoid(), width) if width == other else None


def _multiply(net: RandomNet, width: int, other: int, number: int) -> Made:
    return (lambda x, y: x * y.exp(), width) if width == other else None


def _cat(net: RandomNet, width: int, other: int, number: int) -> Made:
    return lambda x, y: torch.cat([x, y], net.axis), width + other


def _halves(net: RandomNet, width: int, other: int, number: int) -> Made:
    if width % 2:
        return None
    return lambda x, y: (lambda a, b: a * b.sigmoid())(*x.chunk(2, net.axis)), width // 2


def _glu(net: RandomNet, width: int, other: int, number: int) -> Made:
    return None if width % 2 else (lambda x, y: F.glu(x, net.axis), width // 2)


def _slice(net: RandomNet, width: int, other: int, number: int) -> Made:
    if width == 1:
        return None
    start = number % (width - 1)
    return lambda x, y: x.narrow(net.axis, start, width - 1 - start), width - 1 - start


def _swap(net: RandomNet, width: int, other: int, number: int) -> Made:
    if width == 1:
        return None
    first = 1 + number % (width - 1)
    return lambda x, y: torch.cat(x.split([first, width - first], net.axis)[::-1], net.axis), width


def _every_other(net: RandomNet, width: int, other: int, number: int) -> Made:
    return (
        None
        if width % 2
        else (lambda x, y: x.unflatten(net.axis, (-1, 2)).select(net.axis + 1 if net.axis > 0 else -1, 0), width // 2)
    )


def _repeat(net: RandomNet, width: int, other: int, number: int) -> Made:
    return lambda x, y: torch.cat([x, x], net.axis), 2 * width


def _interleave(net: RandomNet, width: int, other: int, number: int) -> Made:
    return lambda x, y: x.repeat_interleave(2, dim=net.axis), 2 * width


def _shuffle(net: RandomNet, width: int, other: int, number: int) -> Made:
    groups = divisor(number, width)

    def run(x: Tensor, y: Tensor) -> Tensor:
        x = x.movedim(net.axis, 1)
        return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2).movedim(1, net.axis)

    return run, width


def _sum_of_parts(net: RandomNet, width: int, other: int, number: int) -> Made:
    parts = divisor(number, width)
    return lambda x, y: x.movedim(net.axis, 1).unflatten(1, (parts, -1)).sum(1).movedim(1, net.axis), width // parts


def _mean_gate(net: RandomNet, width: int, other: int, number: int) -> Made:
    reduce = (torch.mean, torch.amax, torch.std, torch.sum)[number % 4]
    return lambda x, y: x * reduce(y, dim=net.axis, keepdim=True).sigmoid(), width


def _normalized(net: RandomNet, width: int, other: int, number: int) -> Made:
    return lambda x, y: F.normalize(x, dim=net.axis), width


def _softmax(net: RandomNet, width: int, other: int, number: int) -> Made:
    return lambda x, y: x.softmax(net.axis), width


def _scale(net: RandomNet, width: int, other: int, number: int) -> Made:
    scale = net.add(nn.Embedding(1, width))
    return lambda x, y: (x.movedim(net.axis, -1) * scale.weight[0]).movedim(-1, net.axis), width  # type: ignore[index]


SHARED = (
    _activation, _add, _multiply, _cat, _halves, _glu, _slice, _swap, _every_other, _repeat, _interleave, _shuffle,
    _sum_of_parts, _mean_gate, _normalized, _softmax, _scale,
)  # fmt: skip


# ---------------------------------------------------------------------- images [N, C, H, W]


def _convolution(net: RandomNet, width: int, other: int, number: int) -> Made:
    outputs = WIDTHS[number % 4]
    groups = divisor(number, width, outputs) if number >= 4 else 1
    layer = net.add(nn.Conv2d(width, outputs, 3 if number % 2 else 1, padding=number % 2, groups=groups))
    return lambda x, y: layer(x), outputs


def _depthwise(net: RandomNet, width: int, other: int, number: int) -> Made:
    layer = net.add(nn.Conv2d(width, width * (1 + number % 2), 3, padding=1, groups=width))
    return lambda x, y: layer(x), width * (1 + number % 2)


def _transposed(net: RandomNet, width: int, other: int, number: int) -> Made:
    outputs = WIDTHS[number % 4]
    layer = net.add(nn.ConvTranspose2d(width, outputs, 3, padding=1, groups=divisor(number, width, outputs)))
    return lambda x, y: layer(x), outputs


def _norm(net: RandomNet, width: int, other: int, number: int) -> Made:
    norms: tuple[Callable[[], nn.Module], ...] = (
        lambda: nn.BatchNorm2d(width), lambda: nn.GroupNorm(divisor(number, width), width),
        lambda: nn.InstanceNorm2d(width, affine=True), lambda: nn.PReLU(width), lambda: nn.LayerNorm([width, 4, 4]),
    )  # fmt: skip
    layer = net.add(norms[number % 5]())
    return lambda x, y: layer(x), width


def _excite(net: RandomNet, width: int, other: int, number: int) -> Made:
    narrow, widen = net.add(nn.Conv2d(other, 4, 1)), net.add(nn.Conv2d(4, width, 1))
    return lambda x, y: x * widen(narrow(y.mean((2, 3), keepdim=True)).relu()).sigmoid(), width


def _pad(net: RandomNet, width: int, other: int, number: int) -> Made:
    left, right = number % 3, number % 4
    return lambda x, y: F.pad(x, (0, 0, 0, 0, left, right), value=0.5), width + left + right


def _pixels(net: RandomNet, width: int, other: int, number: int) -> Made:
    return None if width % 4 else (lambda x, y: F.avg_pool2d(F.pixel_shuffle(x, 2), 2), width // 4)


def _volume(net: RandomNet, width: int, other: int, number: int) -> Made:
    layer = net.add(nn.Conv3d(width, 4, (1, 3, 3), padding=(0, 1, 1)))
    return lambda x, y: layer(x[:, :, None]).squeeze(2), 4


def _attend_to_pixels(net: RandomNet, width: int, other: int, number: int) -> Made:
    """Over channels as positions: the outer product of two flattened values."""
    if width != other:
        return None
    return lambda x, y: (torch.einsum("ncp,ndp->ncd", x.flatten(2), y.flatten(2)).softmax(1) @ x.flatten(2)).view_as(
        x
    ), width


IMAGE_OPS = (
    *SHARED, _convolution, _convolution, _convolution, _depthwise, _transposed, _norm, _norm, _excite, _pad, _pixels,
    _volume, _attend_to_pixels,
)  # fmt: skip


def image_net(listed: list[Step]) -> RandomNet:
    return RandomNet(nn.Conv2d(3, 8, 3, padding=1), 8, IMAGE_OPS, listed, 1)


# ---------------------------------------------------------------------- sequences [N, T, C]


def _linear(net: RandomNet, width: int, other: int, number: int) -> Made:
    layer = net.add(nn.Linear(width, WIDTHS[number % 4]))
    return lambda x, y: layer(x), WIDTHS[number % 4]


def _norm_of_features(net: RandomNet, width: int, other: int, number: int) -> Made:
    layer = net.add((nn.LayerNorm, nn.RMSNorm)[number % 2](width))
    return lambda x, y: layer(x), width


def _attention(net: RandomNet, width: int, other: int, number: int) -> Made:
    """Heads of 4 over two values; queries may share keys."""
    heads, shared = 2 * (1 + number % 2), 1 + number % 2
    query = net.add(nn.Linear(width, 4 * heads))
    key, value = (net.add(nn.Linear(other, 4 * heads // shared)) for _ in range(2))

    def run(x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (layer(z).unflatten(-1, (-1, 4)).transpose(1, 2) for layer, z in ((query, x), (key, y), (value, y)))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=shared > 1).transpose(1, 2).flatten(2)

    return run, 4 * heads


def _attention_by_hand(net: RandomNet, width: int, other: int, number: int) -> Made:
    fused = net.add(nn.Linear(width, 24))

    def run(x: Tensor, y: Tensor) -> Tensor:
        q, k, v = fused(x).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return ((q @ k.mT * 0.5).softmax(-1) @ v).transpose(1, 2).reshape(-1, 5, 8)

    return run, 8


def _memory(net: RandomNet, width: int, other: int, number: int) -> Made:
    kind, both = (nn.LSTM, nn.GRU, nn.RNN)[number % 3], number % 2 == 0
    layer = net.add(kind(width, 4, 1 + number % 2, batch_first=True, bidirectional=both))
    return lambda x, y: layer(x)[0], 8 if both else 4


def _mixed(net: RandomNet, width: int, other: int, number: int) -> Made:
    first, second = net.add(nn.Linear(5, 6)), net.add(nn.Linear(6, 5))
    return lambda x, y: x + second(first(x.mT).tanh()).mT, width


def _filtered(net: RandomNet, width: int, other: int, number: int) -> Made:
    groups = divisor(number, width)
    layer = net.add(nn.Conv1d(width, width, 3, padding=1, groups=groups))
    return lambda x, y: layer(x.mT).mT, width


def _rotated(net: RandomNet, width: int, other: int, number: int) -> Made:
    half = width // 2
    return None if width % 2 else (lambda x, y: x * 0.3 + torch.cat([-x[..., half:], x[..., :half]], -1), width)


SEQUENCE_OPS = (
    *SHARED, _linear, _linear, _linear, _norm_of_features, _attention, _attention, _attention_by_hand, _memory, _mixed,
    _filtered, _rotated,
)  # fmt: skip


def sequence_net(listed: list[Step]) -> RandomNet:
    return RandomNet(nn.Linear(6, 8), 8, SEQUENCE_OPS, listed, 2)
