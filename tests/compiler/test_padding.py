from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish.compiler.inputs import Inputs
from planish.compiler.padding import PADS, zero_padding
from planish.compiler.trace import trace


class Padding(nn.Module):
    def __init__(self, amounts: tuple[int, ...], options: dict[str, Any]) -> None:
        super().__init__()
        self.amounts, self.options = amounts, options

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.amounts, **self.options)


@pytest.mark.parametrize(
    ("amounts", "options", "zeros"),
    [
        ((1, 2), {}, [1, 2]),
        ((0, 1, 2, 3), {"value": 0.0}, [0, 1, 2, 3]),
        ((1, 1), {"mode": "constant", "value": None}, [1, 1]),
        ((1, 1), {"value": 2.0}, None),
        ((1, 1), {"value": float("-inf")}, None),
        ((-1, 1), {}, None),
        ((1, 1, 1, 1), {"mode": "reflect"}, None),
    ],
)
def test_only_a_padding_with_zeros_is_one(
    amounts: tuple[int, ...], options: dict[str, Any], zeros: list[int] | None
) -> None:
    program = trace(Padding(amounts, options), Inputs.of(torch.randn(2, 3, 4, 5)))
    (node,) = program.calls(*PADS) if any(program.calls(*PADS)) else program.calls()
    assert zero_padding(node) == zeros
    assert zero_padding(program.placeholders[0]) is None
