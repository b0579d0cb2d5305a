"""The arguments of one model call, in the one form that the whole compiler uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from planish.compiler.errors import UserError


@dataclass(frozen=True)
class Inputs:
    """Positional and keyword arguments of one call of a model.

    The tensors inside (nested in tuples, lists and dicts as the model takes them) are its
    *leaves*, in pytree order: the order of the placeholders of a Program.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> Inputs:
        """A tensor is the one argument, a tuple or list the positional ones, a dict the keywords."""
        if isinstance(value, Inputs):
            return value
        if isinstance(value, Mapping):
            return cls((), dict(value))
        if isinstance(value, Sequence) and not isinstance(value, str):
            return cls(tuple(value), {})
        return cls((value,), {})

    def leaves(self) -> list[Any]:
        if not self.kwargs and all(isinstance(argument, Tensor) for argument in self.args):
            return [*self.args]  # a training asks this of every batch, and the general way takes ten times as long
        return pytree.tree_leaves((self.args, self.kwargs))

    def map(self, change: Callable[[Any], Any]) -> Inputs:
        """The same call with ``change`` applied to every leaf."""
        args, kwargs = pytree.tree_map(change, (self.args, self.kwargs))
        return Inputs(args, kwargs)

    def call(self, model: Callable[..., Any]) -> Any:
        return model(*self.args, **self.kwargs)

    @property
    def batch_size(self) -> int:
        """Size of dimension 0 of the first tensor; 1 where every tensor is a scalar."""
        sizes = [leaf.shape[0] for leaf in self.leaves() if isinstance(leaf, Tensor) and leaf.ndim]
        return int(sizes[0]) if sizes else 1

    def batched(self, size: int) -> Inputs:
        """Repeat every leaf that carries the batch until the batch has at least ``size`` rows."""
        batch = self.batch_size
        if batch >= size or batch == 0:
            return self
        times = -(-size // batch)
        return self.map(lambda leaf: torch.cat([leaf] * times) if self._carries_batch(leaf) else leaf)

    def split(self, size: int) -> Iterator[Inputs]:
        """The same rows in calls of at most ``size`` rows; tensors without the batch are passed whole."""
        for start in range(0, self.batch_size, size):
            yield self._rows(slice(start, start + size))

    def _rows(self, rows: slice) -> Inputs:
        return self.map(lambda leaf: leaf[rows] if self._carries_batch(leaf) else leaf)

    @staticmethod
    def join(pieces: Sequence[Inputs]) -> Inputs:
        """The rows of all ``pieces`` in one call; the first piece where their other sizes differ."""
        first = pieces[0]
        columns = zip(*(piece.leaves() for piece in pieces), strict=True)
        joined: list[Any] = []
        for column in columns:
            if not first._carries_batch(column[0]):
                joined.append(column[0])
            elif len({leaf.shape[1:] for leaf in column}) > 1:
                return first
            else:
                joined.append(torch.cat(column))
        leaves = iter(joined)
        return first.map(lambda _: next(leaves))

    def _carries_batch(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == self.batch_size


def check_tensors(inputs: Inputs, where: str) -> Inputs:
    """Raise UserError unless ``inputs`` has tensors and all of them are finite."""
    tensors = [leaf for leaf in inputs.leaves() if isinstance(leaf, Tensor)]
    if not tensors:
        raise UserError(f"Pass at least one tensor in {where}; it holds {inputs.leaves()!r:.80}.")
    for index, tensor in enumerate(tensors):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"Remove the NaN or infinite values from {where}: tensor {index} has some.")
        if tensor.numel() == 0:
            raise UserError(f"Pass a non-empty batch in {where}: tensor {index} has shape {list(tensor.shape)}.")
    return inputs
