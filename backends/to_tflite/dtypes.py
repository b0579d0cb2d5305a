"""The dtypes of the Program in the file."""

from __future__ import annotations

import torch
from torch import Tensor

FILE_TYPES = {
    torch.float32: torch.float32, torch.float64: torch.float32, torch.float16: torch.float32,
    torch.bfloat16: torch.float32, torch.bool: torch.bool, torch.int64: torch.int32, torch.int32: torch.int32,
    torch.int16: torch.int32, torch.uint8: torch.int32, torch.int8: torch.int32,
}  # fmt: skip
"""dtype in the Program -> dtype in the file."""


def in_file(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the Program in the dtype that the file holds; whole numbers beyond INT32 are its ends."""
    dtype = dtype or FILE_TYPES[tensor.dtype]
    if tensor.dtype is torch.int64:
        limits = torch.iinfo(torch.int32)
        tensor = tensor.clamp(limits.min, limits.max)
    return tensor.detach().to(dtype)
