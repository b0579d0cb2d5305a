"""Small nets, and their INT8 Programs as the pass makes them for this backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.backends.to_tflite.backend import TfliteBackend
from planish.compiler.calibration import InputForm, from_data
from planish.compiler.contracts import Context
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program
from planish.compiler.targets import find_profile
from planish.passes.erase_noops import EraseNoOps
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.quantize_int8 import QuantizeInt8
from tests.backends.to_tflite.oracle import traced

PI = "raspberry-pi-5"


class Residual(nn.Module):
    """Convolutions of all kinds, a residual, pooling, a classifier."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.point(F.relu6(self.deep(x)))
        x = F.max_pool2d(F.relu(x + y), 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def profile(name: str = PI) -> HardwareProfile:
    return find_profile(name)


def in_int8(model: nn.Module, *inputs: Tensor, target: str = PI) -> tuple[Program, Program]:
    """The cleaned Program, and the same in INT8."""
    device = profile(target)
    program = traced(model, *inputs)
    rows = [tuple(torch.cat([torch.randn_like(tensor) for _ in range(16)]) for tensor in inputs)]
    calibration = from_data(rows, InputForm.of_program(program), program)
    context = Context(device, TfliteBackend().scheme(device), calibration)
    for compression in (EraseNoOps(), FoldBatchNorm()):
        program = compression.run(program, context)
    return program, QuantizeInt8().run(program, context)
