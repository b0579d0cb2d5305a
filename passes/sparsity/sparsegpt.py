"""SparseGPT (arXiv:2301.00774): remove weights column by column, and let those to the right make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from planish.passes.sparsity.patterns import STRIP, Pattern

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean: the paper's."""
ATTEMPTS = 6


def reconstruct(weight: Tensor, gram: Tensor, pattern: Pattern, ratio: float) -> tuple[Tensor, Tensor]:
    """What is left of ``weight``, updated, and which of it.

    Minimizes the squared error of the outputs, ``gram`` being the sum of x xᵀ over inputs x.

    Args:
        weight: [groups, rows, columns].
        gram: [groups, columns, columns].
        pattern: which zeros are allowed.
        ratio: share of zeros, where the pattern leaves it open.

    Returns:
        The weight and a bool mask, both [groups, rows, columns].
    """
    factor = _inverse_factor(gram)
    left = weight.clone()
    left.masked_fill_((gram.diagonal(dim1=1, dim2=2) == 0)[:, None], 0)  # never multiplied by anything but zero
    keep = torch.ones_like(weight, dtype=torch.bool)
    columns = weight.shape[2]
    width = max(1, STRIP // pattern.columns) * pattern.columns
    for start in range(0, columns, width):
        end = min(start + width, columns)
        errors = _strip(left[:, :, start:end], keep[:, :, start:end], factor[:, start:end, start:end], pattern, ratio)
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return left, keep


def _strip(left: Tensor, keep: Tensor, factor: Tensor, pattern: Pattern, ratio: float) -> Tensor:
    """Do a few columns, in place; the errors of each, which the columns to the right have still to make up for.

    Works on columns that lie one behind the other in memory: [groups, columns, rows].
    """
    turned = left.transpose(1, 2).contiguous()
    errors = torch.zeros_like(turned)
    scale = factor.diagonal(dim1=1, dim2=2)
    for column in range(turned.shape[1]):
        if column % pattern.columns == 0:
            chosen = slice(column, column + pattern.columns)
            scores = (turned[:, chosen] / scale[:, chosen, None]).square()
            keep[:, :, chosen] = pattern.keep(scores.transpose(1, 2), ratio)
        kept = turned[:, column] * keep[:, :, column]
        errors[:, column] = (turned[:, column] - kept) / scale[:, column, None]
        turned[:, column + 1 :] -= factor[:, column, column + 1 :, None] * errors[:, column, None]
        turned[:, column] = kept
    left.copy_(turned.transpose(1, 2))
    return errors.transpose(1, 2)


def _inverse_factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped ``gram``; more damping where it is needed."""
    damped = gram.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    diagonal[diagonal == 0] = 1
    step = DAMPING * diagonal.mean(1, keepdim=True)
    for _ in range(ATTEMPTS):
        diagonal += step
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            inverse = torch.cholesky_inverse(lower)
            del lower
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed.any():
                return upper
        step = 10 * step
    raise ArithmeticError("the inputs of a layer are not finite, or far apart in size")
