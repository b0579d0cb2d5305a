"""Which zeros a kernel or a file format can use: N of M, blocks, single values.

All choose from scores [problems, rows, columns], one score a weight and one choice a problem: columns are what a layer
sums over (input channels innermost), rows its outputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile

STRIP = 128
"""Columns that SparseGPT decides on at once where the pattern leaves it open (arXiv:2301.00774, section 3.2)."""


@dataclass(frozen=True)
class NOfM:
    """Of every ``group`` neighbouring columns of a row at most ``kept`` are not zero."""

    kept: int
    group: int

    rows = 1
    """Rows that are chosen together."""

    @property
    def columns(self) -> int:
        """Columns that are chosen together."""
        return self.group

    @property
    def is_two_four(self) -> bool:
        """Whether kernels for 2:4 can run it: at most half of any four neighbours is left."""
        return self.kept * 2 <= self.group and self.group in (2, 4)

    def keep(self, scores: Tensor, ratio: float) -> Tensor:
        """Bool, as ``scores``: the best ``kept`` of each group, whatever ``ratio`` is."""
        grouped = scores.unflatten(-1, (-1, self.group))
        best = grouped.topk(self.kept, dim=-1).indices
        kept: Tensor = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, best, True)
        return kept.flatten(-2)

    def __str__(self) -> str:
        return f"{self.kept}:{self.group}"


@dataclass(frozen=True)
class Blocks:
    """Tiles of ``rows`` outputs by ``width`` columns that are zero as a whole; 1 x 1 are single values."""

    rows: int = 1
    width: int = 1

    @property
    def columns(self) -> int:
        return self.width * max(1, STRIP // self.width)

    def keep(self, scores: Tensor, ratio: float) -> Tensor:
        """Bool, as ``scores``: all tiles of a problem but the lowest ``ratio`` of them."""
        tiles = self.sums(scores)
        flat = tiles.flatten(1)
        lowest = flat.topk(round(ratio * flat.shape[1]), largest=False, sorted=False).indices
        kept = torch.ones_like(flat, dtype=torch.bool).scatter_(1, lowest, False).reshape(tiles.shape)
        whole: Tensor = kept.repeat_interleave(self.rows, 1).repeat_interleave(self.width, 2)
        return whole

    def sums(self, scores: Tensor) -> Tensor:
        """[problems, rows of tiles, columns of tiles]: the scores of each tile together."""
        strips = scores.unflatten(2, (-1, self.width)).sum(3)
        tiles: Tensor = strips.unflatten(1, (-1, self.rows)).sum(2)
        return tiles

    def __str__(self) -> str:
        return "unstructured" if self.rows == self.width == 1 else f"blocks of {self.rows}x{self.width}"


Pattern = NOfM | Blocks


def pattern_named(name: str, profile: HardwareProfile | None = None) -> Pattern:
    """The pattern of an option: ``2:4``, ``unstructured``, ``4x1`` (outputs by inputs), or ``block``, the device's own.

    Raises UserError for an unknown name, and for ``block`` on a device whose profile states none.
    """
    if name == "unstructured":
        return Blocks()
    if name == "block":
        return Blocks() if profile is None else _tile(profile)
    match = re.fullmatch(r"([1-9]\d*)([:x])([1-9]\d*)", name) if isinstance(name, str) else None
    if match is not None and match[2] == "x":
        return Blocks(int(match[1]), int(match[3]))
    if match is None or int(match[1]) >= int(match[3]):
        raise UserError(
            'Give sparsify pattern="2:4" (or another N:M with N below M), "unstructured", "block", or the size of '
            f'blocks as "4x1", not {name!r}.'
        )
    return NOfM(int(match[1]), int(match[3]))


def _tile(profile: HardwareProfile) -> Blocks:
    if profile.support.sparse_block is None:
        raise UserError(
            f'Give the size of blocks, outputs by inputs, as pattern="4x1": no kernel of {profile.title} is known that '
            "skips blocks of zeros."
        )
    outputs, inputs = profile.support.sparse_block
    return Blocks(int(outputs.value), int(inputs.value))
