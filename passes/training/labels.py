"""The loss on labels, for outputs of any shape: classes, tokens, images of classes, several labels, numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from planish.compiler.errors import UserError

IGNORED = -100
"""Label of what is not to be learnt (padding), as in ``torch.nn.functional.cross_entropy``."""


def task_loss(outputs: Any, labels: Any, ignored: int = IGNORED) -> Tensor:
    """Mean loss of ``outputs`` against ``labels``; summed over pairs where labels are several.

    A pair is read from its types and shapes: whole-number labels with one dimension less are classes (cross entropy,
    over dimension 1, or the last one of tokens), those of the same shape are 0 or 1 (binary cross entropy on logits),
    real ones are targets (mean squared error). Raises UserError, with both shapes, where nothing of this fits, and for
    classes out of range.
    """
    losses = [pair_loss(output, label, ignored) for output, label in pairs(outputs, labels)]
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def pairs(outputs: Any, labels: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Each label with its output: by name, by position, or the first real output for a single label."""
    if labels is None:
        raise UserError(
            "Yield (inputs, labels) from train: it yields inputs alone, and the loss on labels needs labels."
        )
    if isinstance(labels, Mapping) and isinstance(outputs, Mapping) and labels.keys() <= outputs.keys():
        for name, label in labels.items():
            yield outputs[name], label
    elif isinstance(labels, Tensor):
        yield first_tensor(outputs), labels
    elif isinstance(labels, Sequence) and len(tensors := real_tensors(outputs)) == len(labels):
        yield from zip(tensors, labels, strict=True)
    else:
        raise UserError(
            f"Yield one label tensor from train, or one for each of the {len(real_tensors(outputs))} outputs, in order "
            f"or under their names; it yields {describe(labels)}."
        )


def real_tensors(outputs: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def first_tensor(outputs: Any) -> Tensor:
    """What a model of several outputs is trained on: ``logits``, or its first real tensor."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if isinstance(logits, Tensor):
        return logits
    tensors = real_tensors(outputs)
    if not tensors:
        raise UserError("Train a model that returns real numbers: this one returns none.")
    return tensors[0]


def describe(value: Any) -> str:
    """``float32 [8, 10]``, or the type and length of what is no tensor."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")


def pair_loss(output: Tensor, label: Tensor, ignored: int = IGNORED) -> Tensor:
    """See ``task_loss``."""
    whole = not label.is_floating_point()
    axis = class_axis(output, label.shape) if whole else None
    if axis is not None:
        return F.cross_entropy(
            output.movedim(axis, 1), _in_range(label, output.shape[axis], ignored), ignore_index=ignored
        )
    if output.shape != label.shape and output.squeeze(-1).shape == label.shape:
        output = output.squeeze(-1)
    if output.shape != label.shape:
        raise UserError(
            f"Give labels that fit the outputs: the loss on labels (HardLabels) got {describe(label)} for an output of "
            f"{describe(output)}."
        )
    if whole:
        return F.binary_cross_entropy_with_logits(output, label.to(output.dtype))
    return F.mse_loss(output, label.to(output.dtype))


def class_axis(output: Tensor, labels: Sequence[int]) -> int | None:
    """The dimension of ``output`` that holds classes, for labels of that shape; None if none does.

    Where both the second and the last one could: tokens have theirs last, images second.
    """
    if output.ndim != len(labels) + 1 or (output.ndim == 2 and output.shape[1] == 1):
        return None
    shape = tuple(output.shape)
    last, second = shape[:-1] == tuple(labels), shape[:1] + shape[2:] == tuple(labels)
    if last and (output.ndim <= 3 or not second):
        return output.ndim - 1
    return 1 if second else None


def _in_range(label: Tensor, classes: int, ignored: int) -> Tensor:
    """``label`` as cross entropy takes it. Raises UserError for one that is no class."""
    label = label.long()
    wrong = ((label < 0) | (label >= classes)) & (label != ignored)
    if bool(wrong.any()):
        found = int(label[wrong][0])
        raise UserError(f"Give labels from 0 to {classes - 1}, as the model has {classes} outputs: there is a {found}.")
    return label
