"""Random networks, a scheme of its own, and what the tests of passes share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program, source_module
from planish.compiler.scheme import IntegerOp, IntegerType, QuantizationScheme
from planish.compiler.shapes import propagate
from planish.compiler.trace import trace
from planish.passes.placement import Placement, place

aten = torch.ops.aten

U8 = IntegerType(torch.uint8, 0, 255, symmetric=False)
S8 = IntegerType(torch.int8, -128, 127, symmetric=True)
WEIGHT = IntegerType(torch.int8, -127, 127, symmetric=True, granularity="channel")
CONV = IntegerOp(
    (aten.conv1d.default, aten.conv2d.default, aten.conv2d.padding), (0,), weight=1, fuses=(aten.relu.default,)
)
LINEAR = IntegerOp((aten.linear.default,), (0,), weight=1, quantizes_output=False)
ADD = IntegerOp((aten.add.Tensor,), (0, 1), fuses=(aten.relu.default,))
CAT = IntegerOp((aten.cat.default,), (0,))
POOL = IntegerOp((aten.mean.dim, aten.adaptive_avg_pool2d.default), (0,))
SCHEME = QuantizationScheme(
    activation=U8,
    weight=WEIGHT,
    ops=(CONV, LINEAR, ADD, CAT, POOL),
    transparent=(aten.max_pool2d.default, aten.reshape.default, aten.flatten.using_ints, aten.pad.default),
)
SYMMETRIC = replace(SCHEME, activation=S8)


def profile() -> HardwareProfile:
    return registry().find_profile("x86-avx512-vnni")


def context(scheme: QuantizationScheme | None = SCHEME, *batches: Tensor) -> Context:
    calibration = Calibration([Inputs.of(batch) for batch in batches], "given")
    return Context(profile(), scheme, calibration)


def traced(model: nn.Module, *args: Tensor) -> Program:
    program = trace(model.eval(), Inputs(args))
    propagate(program)
    return program


def placed(program: Program, scheme: QuantizationScheme = SCHEME, keep_float: tuple[str, ...] = ()) -> Placement:
    propagate(program)
    return place(program, scheme, keep_float)


def outcomes(placement: Placement) -> dict[str, str]:
    """Source module -> int8 or float, for those that have a weight."""
    return {source_module(node): outcome for node, outcome, _ in placement.decided if len(node.args) > 2}


def the(program: Program, operator: Any, at: int = 0) -> fx.Node:
    return [*program.calls(operator)][at]


def warm(model: nn.Module, *args: Tensor) -> nn.Module:
    """The model, with batch norms that have seen some data and scales of their own."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


class RandomCnn(nn.Module):
    """A chain of layers chosen by small numbers: convolutions, residual adds, concatenations, pools, a head."""

    def __init__(self, choices: list[int], width: int = 4) -> None:
        super().__init__()
        self.choices = choices
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in choices)
        self.joins = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in choices)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in choices)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        for choice, layer, join, norm in zip(self.choices, self.layers, self.joins, self.norms, strict=True):
            z = layer(y)
            match choice:
                case 0:
                    y = norm(z).relu()
                case 1:
                    y = torch.relu(y + z)
                case 2:
                    y = join(torch.cat([y, z], 1))
                case 3:
                    y = nn.functional.max_pool2d(z, 3, 1, 1)
                case 4:
                    y = y * z.mean((2, 3), keepdim=True).sigmoid()
                case 5:
                    y = layer(nn.functional.pad(y, (1, 0, 0, 1)))[:, :, :-1, 1:]
                case _:
                    y = nn.functional.silu(z) + y
        result: Tensor = self.head(y.mean((2, 3)))
        return result
