from __future__ import annotations

import torch
from planish_example import plugin
from planish_example.soft_threshold import soft_threshold
from torch import Tensor, nn

from planish.compiler.coupling.cut import cut
from planish.compiler.coupling.groups import couple
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import make_registry
from planish.compiler.trace import trace


class Thresholded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.amount = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(soft_threshold(self.first(x), self.amount))
        return result


def test_the_rule_lets_the_channels_around_the_operator_be_cut() -> None:
    model = Thresholded().eval()
    program = trace(model, Inputs((torch.randn(2, 4),)))
    assert not couple(program).groups
    coupling = couple(program, make_registry([plugin]).coupling_rules)
    (group,) = coupling.groups
    assert {member.tensor for member in group.members} == {"first.weight", "first.bias", "amount", "last.weight"}

    kept, x = [0, 2, 5], torch.randn(3, 4)
    expected = model.last.weight[:, kept] @ soft_threshold(model.first(x)[:, kept], model.amount[kept]).T
    found = cut(coupling, {group: [1, 3, 4]})(x)
    torch.testing.assert_close(found, expected.T + model.last.bias)
