"""Rounds weights to fewer mantissa bits: zeros at the end, which a compressed artifact does not pay for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from planish.compiler.contracts import Context, Pass, Stage
from planish.compiler.errors import UserError
from planish.compiler.program import Program, set_tensor


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Round every floating-point parameter of two or more dimensions to ``mantissa_bits``.

    The dtype stays, and so does its range: 7 bits are the precision of bfloat16, 10 that of float16.
    Vectors (biases, norms) stay as they are: they are small, and errors in them add up.
    Raises UserError if ``mantissa_bits`` is not between 1 and 52.
    """

    name: ClassVar[str] = "round-weights"
    stage: ClassVar[Stage] = Stage.PRECISION

    mantissa_bits: int = 10

    def __post_init__(self) -> None:
        if not 1 <= self.mantissa_bits <= 52:
            raise UserError(f"Give mantissa_bits between 1 and 52, not {self.mantissa_bits!r}.")

    def run(self, program: Program, context: Context) -> Program:
        rounded = program.fork()
        done: dict[int, nn.Parameter] = {}  # tied weights stay tied
        for node in rounded.graph.nodes:
            weight = program.tensor(node)
            if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or weight.ndim < 2:
                continue
            if id(weight) not in done:
                values = round_mantissa(weight.detach(), self.mantissa_bits)
                done[id(weight)] = nn.Parameter(values, requires_grad=weight.requires_grad)
                error = (values - weight.detach()).abs().max().item()
                reason = f"{self.mantissa_bits} mantissa bits change {node.target} by {error:.2g} at most"
                context.decide(node, "rounded", reason)
            set_tensor(rounded.graph_module, str(node.target), done[id(weight)])
        return rounded


def round_mantissa(values: Tensor, bits: int) -> Tensor:
    """The nearest numbers with ``bits`` mantissa bits (ties to even), in the dtype of ``values``."""
    fraction, exponent = torch.frexp(values.double())
    significand = torch.round(fraction * 2 ** (bits + 1)) / 2**bits  # in [1, 2]: keeps ldexp finite
    return torch.ldexp(significand, exponent - 1).to(values.dtype)
