"""What can teach: anything callable as the student is, alone or several together."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.trace import evaluated, trace
from planish.compiler.training_data import Batch
from planish.passes.distill.rows import row_losses
from planish.passes.distill.taps import tapped
from planish.passes.training.memory_format import channels_last, suits_channels_last
from planish.passes.training.model import move
from planish.passes.training.weights import tensors_of


class Teacher:
    """A model in evaluation, without gradients."""

    def __init__(self, given: Any, example: Inputs, bf16: bool = False) -> None:
        self.given, self._example, self._bf16 = given, example, bf16
        self._points: tuple[str, ...] = ()
        self._program: Program | None = None
        if isinstance(given, Program):
            self._program = given.fork().eval()
        elif isinstance(given, ExportedProgram):
            self._program = trace(given)
        elif not isinstance(given, nn.Module) and not callable(given) and not callable(getattr(given, "run", None)):
            raise UserError(
                f"Pass something callable as teacher (a model, an ExportedProgram, an artifact), not {given!r:.60}."
            )
        self._placed: tuple[torch.device, Callable[..., Any]] | None = None
        self._channels_last = False  # a module may read memory as it lies: .view

    def program(self) -> Program | None:
        """The teacher as a graph, to take features from; None if it is none."""
        if self._program is None and isinstance(self.given, nn.Module):
            self._program = trace(self.given, self._example)
        return self._program

    def identity(self) -> str:
        """A hash of the weights, or of what it answers to the example inputs where it has none."""
        digest = hashlib.sha256(f"{type(self.given).__qualname__} {self._bf16}".encode())
        held = self._program.graph_module if self._program is not None else self.given
        if isinstance(held, nn.Module):
            tensors: list[Any] = [*tensors_of(held).values()]
        else:
            tensors = pytree.tree_leaves(self(Batch(self._example))[0])
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def watch(self, points: Sequence[str]) -> None:
        """Hand out the results of these nodes beside the outputs."""
        self._points, self._placed = tuple(points), None

    def __call__(self, batch: Batch) -> tuple[Any, tuple[Tensor, ...]]:
        """Outputs in float32, and features."""
        device = next(leaf.device for leaf in batch.inputs.leaves() if isinstance(leaf, Tensor))
        if self._placed is None or self._placed[0] != device:
            self._placed = device, self._on(device)
        autocast = torch.autocast(device.type, torch.bfloat16) if self._bf16 else nullcontext()
        inputs = channels_last(batch.inputs) if self._channels_last else batch.inputs
        with torch.no_grad(), autocast:
            outputs = convert_to_fp32(inputs.call(self._placed[1]))
        return (outputs[0], tuple(outputs[1])) if self._points else (outputs, ())

    def _on(self, device: torch.device) -> Callable[..., Any]:
        """The model on ``device``; what is no torch model computes on the CPU."""
        if self._points or isinstance(self.given, (Program, ExportedProgram)):
            program = self.program()
            assert program is not None
            self._channels_last = suits_channels_last(program)
            if device.type != "cpu":
                program = program.copy()
                move(program, device)
            return tapped(program, self._points)
        if isinstance(self.given, nn.Module):
            return evaluated(self.given if device.type == "cpu" else copy.deepcopy(self.given).to(device))
        run = self.given if callable(self.given) else self.given.run
        return run if device.type == "cpu" else _through_cpu(run, device)


def _through_cpu(run: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.cpu, (args, kwargs))
        return pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), run(*args, **kwargs))

    return call


class Teachers:
    """Several teachers as one: their outputs averaged, by fixed weights or row by row by confidence."""

    def __init__(self, teachers: Sequence[Teacher], mixing: str | tuple[float, ...], ignored: int) -> None:
        self.teachers, self._mixing, self._ignored = teachers, mixing, ignored
        if not isinstance(mixing, str) and (len(mixing) != len(teachers) or min(mixing) < 0 or sum(mixing) <= 0):
            raise UserError(f"Give one weight of at least 0 for each of the {len(teachers)} teachers, not {mixing}.")

    def program(self) -> Program | None:
        """None: several teachers have no features in common."""
        return None

    def identity(self) -> str:
        return f"{self._mixing} {[teacher.identity() for teacher in self.teachers]}"

    def watch(self, points: Sequence[str]) -> None:
        assert not points

    def __call__(self, batch: Batch) -> tuple[Any, tuple[Tensor, ...]]:
        answers = [teacher(batch)[0] for teacher in self.teachers]
        weights = self._weights(answers, batch)
        columns = zip(*(pytree.tree_leaves(answer) for answer in answers), strict=True)
        mixed = [_mixed(column, weights) for column in columns]
        return pytree.tree_unflatten(mixed, pytree.tree_structure(answers[0])), ()

    def _weights(self, answers: list[Any], batch: Batch) -> Tensor:
        """``[teachers]``, or ``[teachers, rows]``, summing to 1 over the teachers."""
        if self._mixing != "confidence":
            given = [1.0] * len(answers) if isinstance(self._mixing, str) else self._mixing
            return torch.tensor(given) / sum(given)
        return torch.stack([-row_losses(answer, batch.labels, self._ignored) for answer in answers]).softmax(0)


def _mixed(column: Sequence[Any], weights: Tensor) -> Any:
    if not isinstance(column[0], Tensor) or not column[0].is_floating_point():
        return column[0]
    if len({tensor.shape for tensor in column}) > 1:
        raise UserError(
            f"Pass teachers whose outputs have one shape: they have {', '.join(str([*t.shape]) for t in column)}."
        )
    stacked = torch.stack([*column])
    shape = [*weights.shape, *[1] * (stacked.ndim - weights.ndim)]
    return (stacked * weights.to(stacked).view(shape)).sum(0)
