"""Gradients of the weights on data: on labels where there are some, else of the outputs themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from planish.compiler.calibration import GIVEN
from planish.compiler.contracts import Context
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.training_data import Batch
from planish.passes.pruning.criteria import Gradients
from planish.passes.training.labels import task_loss


def gradients(
    program: Program, context: Context, rows: int, tensors: Mapping[str, Tensor], at_once: int
) -> Iterator[Gradients]:
    """Gradients of a loss with respect to ``tensors`` of the Program, on ``rows`` rows of data, ``at_once`` each time.

    With training data the loss is that of its labels. With calibration data alone it is a random projection of the
    outputs, so that squared gradients tell how far outputs move (E |J d|^2, Hutchinson 1989): no labels needed.

    Raises UserError without data: drawn inputs would tell what matters on noise.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    for number, batch in enumerate(_pieces(program, context, rows, at_once)):
        with torch.enable_grad():
            outputs = functional_call(program.graph_module, leaves, batch.inputs.args, batch.inputs.kwargs)
            labels = batch.labels
            loss = _projection(outputs, context.seed + number) if labels is None else task_loss(outputs, labels)
            found = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True)
        yield {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        }


def rows_of(program: Program, context: Context, rows: int) -> Iterator[Inputs]:
    """Inputs of so many rows of data, a few at once. Raises UserError where there is none."""
    return (piece.inputs for piece in _pieces(program, context, rows, 8))


def has_data(context: Context) -> bool:
    """Whether the user gave any: drawn inputs tell nothing of what matters."""
    return context.train is not None or context.calibration.origin == GIVEN


def _pieces(program: Program, context: Context, rows: int, at_once: int) -> Iterator[Batch]:
    left = rows
    for batch in _batches(program, context):
        parts = -(-batch.rows // min(at_once, rows)) if program.dynamic_axes else 1  # a fixed batch comes whole
        for index in range(parts):
            if left <= 0:
                return
            piece = batch.part(index, parts)
            left -= piece.rows
            yield piece


def _batches(program: Program, context: Context) -> Iterator[Batch]:
    if not has_data(context):
        raise UserError(
            "Pass train=loader or calibration=loader to planish.compile: what matters here is told by data. "
            "Criteria for channels that look at weights alone are l1, l2, lamp, fpgm and batch-norm."
        )
    if context.train is not None:
        yield from context.train.batches(program)
    else:
        yield from (Batch(inputs) for inputs in context.calibration)


def _projection(outputs: object, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    real = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not real:
        raise UserError("Choose a criterion that looks at weights alone: no output of this model has a gradient.")
    return sum(
        ((leaf * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)).sum() for leaf in real),
        real[0].new_zeros(()),
    )
