from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.passes.sparsity.criteria import CRITERIA, gram
from planish.passes.sparsity.layers import Layer, find_layers
from planish.passes.sparsity.patterns import NOfM
from planish.passes.sparsity.sparsegpt import reconstruct
from planish.passes.sparsity.walk import prune_by_inputs
from tests.passes.nets import RandomCnn, traced

GPT = CRITERIA["sparsegpt"]


def pruned(program: Program, batches: list[Inputs]) -> tuple[Program, dict[str, Tensor]]:
    """``program`` with all layers 2:4, and the Gram matrix that each was pruned with."""
    program, seen = program.fork(), {}
    layers = [layer for layer in find_layers(program)[0] if layer.inputs % 4 == 0]

    def prune(layer: Layer, weight: Tensor, statistic: Tensor | None) -> Tensor:
        assert statistic is not None
        seen[layer.name] = statistic
        return layer.weight(GPT.prune(layer.matrix(weight), statistic, NOfM(2, 4), 0.5)[0])

    with torch.no_grad():
        prune_by_inputs(program, layers, GPT, batches, prune)
    return program, seen


def test_each_layer_sees_what_the_pruned_layers_before_it_make() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = torch.randn(40, 8)
    _, seen = pruned(traced(model, x[:2]), [Inputs((part,)) for part in x.split(16)])
    with torch.no_grad():
        value = x
        for index, layer in enumerate(model):
            if isinstance(layer, nn.Linear):
                of_inputs = gram(value[None])
                torch.testing.assert_close(seen[str(index)], of_inputs, rtol=1e-4, atol=1e-3)
                layer.weight.copy_(reconstruct(layer.weight[None], of_inputs, NOfM(2, 4), 0)[0][0])
            value = layer(value)


def test_pieces_of_the_data_see_what_the_whole_sees() -> None:
    program = traced(RandomCnn([0, 1, 2, 4, 6]), torch.randn(2, 3, 8, 8))
    x = torch.randn(12, 3, 8, 8)
    _, whole = pruned(program, [Inputs((x,))])
    _, pieces = pruned(program, [Inputs((part,)) for part in x.split(5)])
    assert whole.keys() == pieces.keys() and len(whole) == 7
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-3, atol=1e-2)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(x).relu()))


def test_a_shared_layer_is_pruned_once_with_the_inputs_of_all_its_calls() -> None:
    model, x = Twice().eval(), torch.randn(16, 8)
    program, seen = pruned(traced(model, x[:2]), [Inputs((x,))])
    with torch.no_grad():
        torch.testing.assert_close(seen["layer"], gram(x[None]) + gram(model.layer(x).relu()[None]))
    assert len({id(parameter) for parameter in program.parameters()}) == 4
    (shared,) = {id(program.tensor(use.weight)) for use in find_layers(program)[0][0].uses}
    assert shared


def test_the_original_keeps_its_weights() -> None:
    program = traced(nn.Linear(8, 8), torch.randn(2, 8))
    before = {name: tensor.clone() for name, tensor in program.state_dict().items()}
    sparse, _ = pruned(program, [Inputs((torch.randn(9, 8),))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.state_dict().items())
    assert not torch.equal(sparse.state_dict()["weight"], before["weight"])


def test_no_batch_and_values_that_are_not_finite_are_told() -> None:
    program = traced(nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8))
    with pytest.raises(UserError, match="at least one batch"):
        pruned(program, [])
    with pytest.raises(UserError, match="Check the calibration data and the model: 0 has infinite or NaN values"):
        pruned(program, [Inputs((torch.full((2, 8), float("inf")),))])
