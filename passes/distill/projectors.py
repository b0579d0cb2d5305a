"""Learned maps from the shape of a student's feature to that of the teacher's. They never reach the Program."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from planish.compiler.errors import UserError
from planish.passes.training.labels import describe


class Projector(nn.Module):
    """Channels by a linear map (a 1x1 convolution of images), tokens and pixels by average pooling (arXiv:1412.6550).

    ``[rows, channels]``, ``[rows, tokens, channels]``, ``[rows, channels, height, width]``.
    """

    def __init__(self, student: Tensor, teacher: Tensor) -> None:
        super().__init__()
        if student.ndim != teacher.ndim or student.ndim not in (2, 3, 4):
            raise UserError(
                f"Name features of as many dimensions, two to four: {describe(student)} of the student cannot be "
                f"projected to {describe(teacher)} of the teacher."
            )
        axis = 1 if student.ndim == 4 else student.ndim - 1
        ours, theirs = student.shape[axis], teacher.shape[axis]
        self.channels: nn.Module
        if ours == theirs:
            self.channels = nn.Identity()
        elif student.ndim == 4:
            self.channels = nn.Conv2d(ours, theirs, 1, bias=False)
        else:
            self.channels = nn.Linear(ours, theirs, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        result: Tensor = self.channels(student)
        if result.shape[1:] == teacher.shape[1:]:
            return result
        if result.ndim == 3:
            return F.adaptive_avg_pool1d(result.transpose(1, 2), teacher.shape[1]).transpose(1, 2)
        return F.adaptive_avg_pool2d(result, [*teacher.shape[2:]])  # type: ignore[arg-type]
