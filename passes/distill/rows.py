"""How hard each row of a batch is for a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from planish.passes.training.labels import IGNORED, class_axis, first_tensor


def row_losses(outputs: Any, labels: Any, ignored: int = IGNORED) -> Tensor:
    """``[rows]``: loss of the main output on its label, or the entropy of its scores where labels are no classes.

    The confidence of CA-MKD, arXiv:2201.00007, is minus this.
    """
    scores = first_tensor(outputs)
    axis = class_axis(scores, labels.shape) if isinstance(labels, Tensor) and not labels.is_floating_point() else None
    if axis is not None:
        losses = F.cross_entropy(scores.movedim(axis, 1), labels.long(), reduction="none", ignore_index=ignored)
    elif isinstance(labels, Tensor) and labels.shape == scores.shape:
        losses = (scores - labels).square()
    else:
        logs = scores.flatten(0, -2).log_softmax(-1) if scores.ndim > 1 else torch.zeros_like(scores)[:, None]
        losses = -(logs.exp() * logs).sum(-1).view(scores.shape[:-1])
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses
