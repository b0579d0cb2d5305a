"""Batches to train on: what the user's loader yields, as the inputs of a Program and the labels beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from planish.compiler.calibration import InputForm, fitting, leaves_of, read
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program


@dataclass(frozen=True)
class Batch:
    """The inputs of one call, and all that the loader yielded beside them (None where it yields inputs alone)."""

    inputs: Inputs
    labels: Any = None

    @cached_property
    def rows(self) -> int:
        return self.inputs.batch_size

    def map_tensors(self, change: Any) -> Batch:
        """The same batch with ``change`` applied to every tensor, those of the labels included."""
        moved = pytree.tree_map_only(Tensor, change, self.labels)
        return Batch(self.inputs.map(lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf), moved)

    def part(self, index: int, parts: int) -> Batch:
        """The rows of process ``index`` of ``parts``; tensors without the batch are passed whole."""
        rows = self.rows
        chosen = slice(rows * index // parts, rows * (index + 1) // parts)
        return self.map_tensors(lambda leaf: leaf[chosen] if leaf.ndim and leaf.shape[0] == rows else leaf)


@dataclass(frozen=True)
class TrainingData:
    """The user's iterable of batches; it is read once in every epoch."""

    source: Iterable[Any]

    def __post_init__(self) -> None:
        if isinstance(self.source, (Tensor, Mapping, str)) or not (
            isinstance(self.source, Iterable) or hasattr(self.source, "__getitem__")
        ):
            raise UserError(
                f"Pass an iterable of (inputs, labels) batches (a DataLoader, a list) as train, "
                f"not {type(self.source).__name__}."
            )
        if iter(self.source) is self.source:
            raise UserError(
                "Pass train data that can be read anew in every epoch (a DataLoader, a list): "
                f"a {type(self.source).__name__} is exhausted after one."
            )

    def __len__(self) -> int:
        """Batches in an epoch. Raises UserError where the source does not know."""
        try:
            count = len(self.source)  # type: ignore[arg-type]
        except TypeError as failure:
            raise UserError(
                "Bound the training by steps or minutes: the train data has no length to count epochs with."
            ) from failure
        if count == 0:
            raise UserError("Pass train data with at least one batch; it is empty.")
        return count

    def batches(self, program: Program) -> Iterator[Batch]:
        """One epoch, as ``program`` takes it. Raises UserError for what does not fit, and for an empty one."""
        form, expected = InputForm.of_program(program), leaves_of(program)
        index = -1
        for index, item in enumerate(read(self.source, "train data")):
            where = f"training batch {index}"
            inputs, labels = form.split(item)
            inputs = fitting(_arranged(inputs, form, program, where), expected, where)
            yield Batch(inputs, labels if isinstance(labels, Tensor) else pytree.tree_map(_as_tensor, labels))
        if index < 0:
            raise UserError("Pass train data with at least one batch; it is empty.")

    def generators(self) -> list[torch.Generator]:
        """The generators of its own that a DataLoader draws its order from."""
        owners = (self.source, getattr(self.source, "sampler", None))
        found = [getattr(owner, "generator", None) for owner in owners]
        return [generator for generator in found if isinstance(generator, torch.Generator)]


def _arranged(inputs: Inputs, form: InputForm, program: Program, where: str) -> Inputs:
    """``inputs`` with the positional and keyword arguments that ``program`` was traced with."""
    example = program.example_inputs
    given = {**dict(zip(form.names, inputs.args, strict=False)), **inputs.kwargs}
    positional = form.names[: len(example.args)]
    missing = [name for name in (*positional, *example.kwargs) if name not in given]
    if missing:
        raise UserError(f"Give {where} the input {missing[0]!r} as well; it has {', '.join(given)}.")
    return Inputs(tuple(given[name] for name in positional), {name: given[name] for name in example.kwargs})


def _as_tensor(label: Any) -> Any:
    return torch.as_tensor(label) if hasattr(label, "__array__") and not isinstance(label, Tensor) else label
