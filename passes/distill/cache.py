"""The teacher's outputs, computed once a row: kept in files that are read by memory mapping.

A row is known by its bytes, so the order of the data and its batches do not matter; rows that augmentation changes are
other rows. What a killed run has half written is cut off by the next one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.training_data import Batch
from planish.passes.distill.logits import spread
from planish.passes.distill.teacher import Teacher, Teachers

Floats = NDArray[np.float32]
KEY = 16
"""Bytes of the hash of a row."""


class CachedTeacher:
    """``teacher``, asked once for each row. ``top_k``: of scores with classes last, only so many are kept."""

    def __init__(self, teacher: Teacher | Teachers, folder: str, top_k: int | None) -> None:
        self._teacher, self._folder, self._top_k = teacher, Path(folder), top_k
        self._structure: Any = None
        self._shapes: list[torch.Size] = []
        self._store: Store | None = None
        self.asked = self.computed = 0
        self.seconds = 0.0

    def program(self) -> Program | None:
        return self._teacher.program()

    def watch(self, points: Sequence[str]) -> None:
        if points:
            raise UserError("Leave out Distill(cache=…): it keeps a teacher's outputs, and these losses want features.")

    def __call__(self, batch: Batch) -> tuple[Any, tuple[Tensor, ...]]:
        keys = row_keys(batch.inputs)
        self.asked += len(keys)
        if self._store is None or not self._store.has(keys):
            self._compute(batch, keys)
        assert self._store is not None
        rows = torch.from_numpy(self._store.read(keys))
        device = next(leaf.device for leaf in batch.inputs.leaves() if isinstance(leaf, Tensor))
        return pytree.tree_unflatten(self._unpacked(rows.to(device)), self._structure), ()

    def _compute(self, batch: Batch, keys: list[bytes]) -> None:
        start = time.perf_counter()
        outputs, _ = self._teacher(batch)
        leaves, self._structure = pytree.tree_flatten(outputs)
        for leaf in leaves:
            if not (isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim and leaf.shape[0] == len(keys)):
                raise UserError("Leave out Distill(cache=…): the teacher returns more than real numbers for each row.")
        self._shapes = [leaf.shape[1:] for leaf in leaves]
        packed = torch.cat([self._packed(leaf.float()).flatten(1) for leaf in leaves], 1)
        if self._store is None:
            layout = f"{[*map(list, self._shapes)]} {self._top_k} {self._teacher.identity()}"
            self._store = Store(self._folder / hashlib.sha256(layout.encode()).hexdigest()[:16], packed.shape[1])
        self._store.add(keys, packed.cpu().numpy())
        self.computed += len(keys)
        self.seconds += time.perf_counter() - start

    def _short(self, shape: torch.Size) -> bool:
        return self._top_k is not None and 1 <= len(shape) <= 2 and shape[-1] > 2 * self._top_k

    def _packed(self, leaf: Tensor) -> Tensor:
        """The ``top_k`` log-probabilities and their places, these as the bits of floats; other outputs as they are."""
        if not self._short(leaf.shape[1:]):
            return leaf
        assert self._top_k is not None
        values, places = leaf.log_softmax(-1).topk(self._top_k, -1)
        return torch.cat([values, places.to(torch.int32).view(torch.float32)], -1)

    def _unpacked(self, rows: Tensor) -> list[Tensor]:
        leaves, start = [], 0
        for shape in self._shapes:
            short = self._short(shape)
            stored = torch.Size([*shape[:-1], 2 * (self._top_k or 0)]) if short else shape
            part = rows[:, start : start + stored.numel()].view(-1, *stored)
            start += stored.numel()
            if short:
                values, places = part.chunk(2, -1)
                flat = [each.flatten(0, -2) for each in (values, places.contiguous().view(torch.int32))]
                part = spread(flat[0], flat[1], shape[-1]).view(-1, *shape)
            leaves.append(part)
        return leaves

    def told(self) -> str:
        size = self._store.bytes() / 1e6 if self._store is not None else 0.0
        return (
            f"The teacher was asked for {self.asked} rows and computed {self.computed} of them in {self.seconds:.1f} s "
            f"(cache: {size:.1f} MB)."
        )


AnyTeacher = Teacher | Teachers | CachedTeacher


class Store:
    """Rows of ``width`` floats by key, in two files that only grow."""

    def __init__(self, folder: Path, width: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._keys, self._rows, self._width = folder / "keys", folder / "rows", width
        for path in (self._keys, self._rows):
            path.touch()
        whole = min(self._keys.stat().st_size // KEY, self._rows.stat().st_size // (4 * width))
        for path, size in ((self._keys, KEY), (self._rows, 4 * width)):
            with path.open("r+b") as file:
                file.truncate(whole * size)
        known = self._keys.read_bytes()
        self._places = {known[start : start + KEY]: start // KEY for start in range(0, len(known), KEY)}
        self._map = self._mapped()

    def _mapped(self) -> Floats:
        count = self._rows.stat().st_size // (4 * self._width)
        if not count:
            return np.zeros((0, self._width), np.float32)
        return np.memmap(self._rows, np.float32, "r", shape=(count, self._width))

    def has(self, keys: Sequence[bytes]) -> bool:
        return all(key in self._places for key in keys)

    def read(self, keys: Sequence[bytes]) -> Floats:
        return np.ascontiguousarray(self._map[[self._places[key] for key in keys]])

    def add(self, keys: Sequence[bytes], rows: Floats) -> None:
        """Append the rows that are not there. Rows first: a key never stands for a row that is not whole."""
        new = {key: index for index, key in enumerate(keys) if key not in self._places}
        with self._rows.open("ab") as file:
            file.write(np.ascontiguousarray(rows[[*new.values()]], dtype=np.float32).tobytes())
        with self._keys.open("ab") as file:
            file.write(b"".join(new))
        self._places.update({key: len(self._places) + place for place, key in enumerate(new)})
        self._map = self._mapped()

    def bytes(self) -> int:
        return self._keys.stat().st_size + self._rows.stat().st_size


def row_keys(inputs: Inputs) -> list[bytes]:
    """A hash of each row of all inputs together, tensors without rows included."""
    rows = inputs.batch_size
    digests = [hashlib.blake2b(digest_size=KEY) for _ in range(rows)]
    for leaf in inputs.leaves():
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == rows:
            held = leaf.detach().cpu().contiguous().view(rows, -1).view(torch.uint8).numpy()
            for digest, row in zip(digests, held, strict=True):
                digest.update(row.data)
        else:
            told = leaf.detach().cpu().flatten().tolist() if isinstance(leaf, Tensor) else leaf
            for digest in digests:
                digest.update(repr(told).encode())
    return [digest.digest() for digest in digests]
