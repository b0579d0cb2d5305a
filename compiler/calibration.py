"""Inputs that show a pass what real data looks like: the user's, or drawn ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs, check_tensors
from planish.compiler.program import Program

GIVEN = "given"


@dataclass(frozen=True)
class Calibration:
    """Batches of model inputs, which can be read again and again."""

    batches: Iterable[Inputs]
    origin: str
    """Where they come from, as the Report says it: ``GIVEN`` by the user, or how they were drawn."""

    def __iter__(self) -> Iterator[Inputs]:
        return iter(self.batches)

    def samples(self, limit: int, at_once: int = 4) -> Iterator[Inputs]:
        """The first ``limit`` rows, in pieces of at most ``at_once`` rows (bounds the memory of activations)."""
        left = limit
        for batch in self:
            for piece in batch.split(at_once):
                if left <= 0:
                    return
                (piece,) = islice(piece.split(left), 1)
                yield piece
                left -= piece.batch_size


@dataclass(frozen=True)
class InputForm:
    """How a model takes its inputs; tells inputs from labels in what a DataLoader yields."""

    names: tuple[str, ...]
    """Parameters of ``forward``, in order."""
    positional: int
    """How many inputs a call has."""
    open_ended: bool = False

    @classmethod
    def of_module(cls, model: nn.Module) -> InputForm:
        parameters = [*inspect.signature(model.forward).parameters.values()]
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        required = [p for p in named if p.default is p.empty]
        return cls(tuple(p.name for p in named), len(required), len(named) != len(parameters))

    @classmethod
    def of_program(cls, program: Program) -> InputForm:
        inputs = program.example_inputs
        info = program.graph._codegen.pytree_info  # type: ignore[attr-defined]
        names = (*info.orig_args[: len(inputs.args)], *inputs.kwargs)
        return cls(tuple(dict.fromkeys(names)), len(inputs.args) + len(inputs.kwargs))

    def inputs_of(self, batch: Any) -> Inputs:
        """The inputs in one batch: the batch itself, or its first part where labels follow."""
        return self.split(batch)[0]

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """The inputs in one batch, and what follows them: the labels, a tuple of several, or None."""
        if isinstance(batch, Tensor):
            return Inputs((batch,)), None
        if isinstance(batch, Mapping):
            known = {key: value for key, value in batch.items() if self.open_ended or key in self.names}
            if not known:
                raise UserError(
                    f"Name the calibration inputs as forward() does ({', '.join(self.names)}); got {', '.join(batch)}."
                )
            rest = {key: value for key, value in batch.items() if key not in known}
            return Inputs((), known), _alone(rest)
        if isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
            if isinstance(batch[0], Mapping) and len(batch) == 2:
                return self.inputs_of(batch[0]), batch[1]
            if isinstance(batch[0], (tuple, list)) and len(batch) == 2 and len(batch[0]) == self.positional:
                return Inputs(tuple(batch[0])), batch[1]
            count = min(self.positional or 1, len(batch))
            return Inputs(tuple(batch[:count])), _alone(batch[count:])
        raise UserError(f"Yield tensors, tuples or dicts from calibration, not {type(batch).__name__}.")


def _alone(labels: Any) -> Any:
    """The only label, or all of several; None for none."""
    if not labels:
        return None
    if len(labels) > 1:
        return labels if isinstance(labels, Mapping) else tuple(labels)
    return next(iter(labels.values())) if isinstance(labels, Mapping) else labels[0]


class _Converted:
    """Reads ``source`` anew each time, one batch after the other."""

    def __init__(self, source: Iterable[Any], convert: Callable[[int, Any], Iterator[Inputs]]) -> None:
        self._source, self._convert = source, convert

    def __iter__(self) -> Iterator[Inputs]:
        for index, batch in enumerate(read(self._source)):
            yield from self._convert(index, batch)


def read(source: Iterable[Any], what: str = "calibration data") -> Iterator[Any]:
    """The batches of the user's own data; what its code raises is told as such."""
    index = 0
    try:
        for batch in source:
            yield batch
            index += 1
    except UserError:
        raise
    except Exception as failure:
        raise UserError(
            f"Mend the {what}: reading batch {index} raised {type(failure).__name__}: {failure}"
        ) from failure


def from_data(data: Iterable[Any], form: InputForm, program: Program | None = None) -> Calibration:
    """Calibration from the user's iterable of inputs, or of (inputs, labels).

    A tensor or a dict of tensors is one batch. An iterator that can be read only once is kept in memory.
    Raises UserError for an empty one, and, as it is read, for NaN or for shapes that do not fit ``program``.
    """
    if isinstance(data, (Tensor, Mapping)):
        data = [data]
    data = readable(data)
    _first(data)
    fixed = program.example_inputs.batch_size if program is not None and not program.dynamic_axes else None
    expected = None if program is None else leaves_of(program)

    def convert(index: int, batch: Any) -> Iterator[Inputs]:
        where = f"calibration batch {index}"
        inputs = check_tensors(form.inputs_of(batch), where)
        whole = fixed is None or inputs.batch_size % fixed
        for piece in [inputs] if whole else inputs.split(fixed or 1):  # a fixed batch takes larger ones in pieces
            yield piece if expected is None else fitting(piece, expected, where)

    return Calibration(_Converted(data, convert), GIVEN)


def readable(data: Any) -> Iterable[Any]:
    """``data``, if it can be read more than once; what is in it, if not. Raises UserError if it is no iterable."""
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise UserError(f"Pass an iterable of batches (a DataLoader, a list) as calibration, not {data!r}.")
    return [*read(data)] if iter(data) is data else data


@dataclass(frozen=True)
class Leaf:
    """What one tensor among the inputs of a Program has to be."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    """Sizes, and the names of those that are free."""

    def takes(self, value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.dtype == self.dtype
            and value.ndim == len(self.shape)
            and all(
                isinstance(asked, str) or asked == size for asked, size in zip(self.shape, value.shape, strict=True)
            )
        )


def leaves_of(program: Program) -> list[Leaf | None]:
    """What its example inputs and dynamic axes ask of the leaves of other inputs; None for what is no tensor."""
    found: list[Leaf | None] = []
    for node, example in zip(program.placeholders, program.example_inputs.leaves(), strict=True):
        axes = program.dynamic_axes.get(node.name, {})
        tensor = isinstance(example, Tensor)
        shape = tuple(axes.get(axis, size) for axis, size in enumerate(example.shape)) if tensor else ()
        found.append(Leaf(node.name, example.dtype, shape) if tensor else None)
    return found


def fitting(inputs: Inputs, expected: Sequence[Leaf | None], where: str) -> Inputs:
    """``inputs``, if their leaves are as ``expected``. Raises UserError for the first that is not."""
    leaves = inputs.leaves()
    if len(leaves) != len(expected):
        raise UserError(f"Give {where} the {len(expected)} inputs of the model; it has {len(leaves)}.")
    for asked, leaf in zip(expected, leaves, strict=True):
        if asked is not None and not asked.takes(leaf):
            got = f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            shape = ", ".join(map(str, asked.shape))
            raise UserError(f"Give input {asked.name!r} of {where} as {asked.dtype} [{shape}]; it is {got}.")
    return inputs


def first_inputs(data: Iterable[Any], form: InputForm) -> Inputs:
    """The inputs in the first batch. Raises UserError if there is none."""
    first = data if isinstance(data, (Tensor, Mapping)) else _first(data)
    return check_tensors(form.inputs_of(first), "calibration batch 0")


def _first(data: Iterable[Any]) -> Any:
    for batch in data:
        return batch
    raise UserError("Pass calibration data with at least one batch; the iterable is empty.")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
