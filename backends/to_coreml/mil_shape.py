"""Operations that move values and compute none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.backends.to_coreml.mil_values import Function, Unevaluated, number, numbers


def const(val: Tensor | str) -> Tensor | str:
    return val


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """0 keeps the size of that dimension, -1 takes what is left."""
    return x.reshape([size or x.shape[dim] for dim, size in enumerate(numbers(shape))])


def reshape_like(
    x: Tensor, ref_tensors: Sequence[Tensor], begins: Sequence[Tensor], ends: Sequence[Tensor], end_masks: list[Tensor]
) -> Tensor:
    sizes: list[int] = []
    for reference, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        sizes += reference.shape[number(begin) : None if bool(to_end) else number(end)]
    return x.reshape(sizes)


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(numbers(perm))


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(numbers(axes)))


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in numbers(axes)):
        x = x.unsqueeze(axis)
    return x


def flatten2d(x: Tensor, axis: Tensor) -> Tensor:
    ahead = x.shape[: number(axis)]
    return x.reshape(ahead.numel(), -1)


def tile(x: Tensor, reps: Tensor) -> Tensor:
    return x.repeat(numbers(reps))


def concat(values: list[Tensor], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    dim = number(axis)
    if interleave is not None and bool(interleave):
        dim %= values[0].ndim
        return torch.stack(values, dim + 1).flatten(dim, dim + 1)
    return torch.cat([value.reshape(1) if value.ndim == 0 else value for value in values], dim)


def stack(values: list[Tensor], axis: Tensor) -> Tensor:
    return torch.stack(values, number(axis))


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    dim = number(axis)
    if split_sizes is not None:
        return tuple(x.split(numbers(split_sizes), dim))
    assert num_splits is not None, "MIL demands one of the two"
    return tuple(x.split(x.shape[dim] // number(num_splits), dim))


def sliced(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeeze_mask: Tensor | None,
) -> list[Tensor | int]:
    """What each dimension is indexed with: places, or one place where the dimension goes."""
    index: list[Tensor | int] = []
    for dim, (first, last) in enumerate(zip(numbers(begin), numbers(end), strict=True)):
        size = x.shape[dim]
        step = 1 if stride is None else int(stride[dim])
        if squeeze_mask is not None and bool(squeeze_mask[dim]):
            index.append(first)
            continue
        start = None if begin_mask is not None and bool(begin_mask[dim]) else first
        stop = None if end_mask is not None and bool(end_mask[dim]) else last
        index.append(torch.tensor([*range(size)[slice(start, stop, step)]], dtype=torch.int64))
    return index


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    places = sliced(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for dim in reversed(range(x.ndim)):
        place = places[dim]
        x = x.select(dim, place) if isinstance(place, int) else x.index_select(dim, place)
    return x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    places = sliced(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    grid = torch.meshgrid([torch.as_tensor([p]) if isinstance(p, int) else p for p in places], indexing="ij")
    return x.index_put(tuple(grid), update.reshape(grid[0].shape))


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    for dim, (start, length) in enumerate(zip(numbers(begin), numbers(size), strict=True)):
        x = x.narrow(dim, start, x.shape[dim] - start if length == -1 else length)
    return x


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """``pad`` has (before, after) for each of the last dimensions, in their order; torch wants the last one first."""
    amounts = numbers(pad)
    pairs = [amounts[at : at + 2] for at in range(0, len(amounts), 2)]
    while len(pairs) > 1 and pairs[0] == [0, 0]:
        pairs.pop(0)
    if mode == "constant":
        value = 0 if constant_val is None else number(constant_val)
        return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=value)
    for dim, (before, after) in zip(range(x.ndim - len(pairs), x.ndim), pairs, strict=True):
        places = _reached(x.shape[dim], before, after, mode)
        x = x.index_select(dim, places)
    return x


def _reached(size: int, before: int, after: int, mode: str) -> Tensor:
    places = torch.arange(-before, size + after)
    if mode == "replicate":
        return places.clamp(0, size - 1)
    if mode == "reflect":
        places = places.abs()
        return torch.where(places >= size, 2 * (size - 1) - places, places)
    raise Unevaluated("pad", f"mode {mode}")


def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.flip([*range(x.ndim)] if axes is None else numbers(axes))


def depth_to_space(x: Tensor, block_size: Tensor) -> Tensor:
    """The place inside a block is the outermost part of the channel; PixelShuffle has it innermost."""
    n, channels, height, width = x.shape
    b = number(block_size)
    cut = x.reshape(n, b, b, channels // (b * b), height, width).permute(0, 3, 4, 1, 5, 2)
    return cut.reshape(n, channels // (b * b), height * b, width * b)


def space_to_depth(x: Tensor, block_size: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    b = number(block_size)
    cut = x.reshape(n, channels, height // b, b, width // b, b).permute(0, 3, 5, 1, 2, 4)
    return cut.reshape(n, channels * b * b, height // b, width // b)


def pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    return F.pixel_shuffle(x, number(upscale_factor))


def pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    return F.pixel_unshuffle(x, number(downscale_factor))


def sliding_windows(x: Tensor, axis: Tensor, size: Tensor, stride: Tensor) -> Tensor:
    dim = number(axis) % x.ndim
    return x.unfold(dim, number(size), number(stride)).movedim(-1, dim + 1)


def band_part(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])
    below, above = number(lower), number(upper)
    kept = ((below < 0) | (rows - columns <= below)) & ((above < 0) | (columns - rows <= above))
    return torch.where(kept, x, torch.zeros((), dtype=x.dtype))


def shape(x: Tensor) -> Tensor:
    return torch.tensor([*x.shape], dtype=torch.int32)


OPERATIONS: dict[str, Function] = {
    "const": const, "reshape": reshape, "reshape_like": reshape_like, "transpose": transpose, "squeeze": squeeze,
    "expand_dims": expand_dims, "flatten2d": flatten2d, "tile": tile, "concat": concat, "stack": stack, "split": split,
    "slice_by_index": slice_by_index, "slice_update": slice_update, "slice_by_size": slice_by_size, "pad": pad,
    "reverse": reverse, "depth_to_space": depth_to_space, "space_to_depth": space_to_depth,
    "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle, "sliding_windows": sliding_windows,
    "band_part": band_part, "shape": shape,
}  # fmt: skip
