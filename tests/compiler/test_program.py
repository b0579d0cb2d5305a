from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.inputs import Inputs
from planish.compiler.program import Program, add_tensor, get_attribute, op_name, set_tensor
from planish.compiler.rules import verify
from planish.compiler.trace import trace
from tests.compiler.models import NAMES, Attention, Cnn, Regions, Tied, case

aten = torch.ops.aten


def train(model: Callable[..., Any], parameters: Any, inputs: Tensor, targets: Tensor, steps: int = 5) -> list[float]:
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fine_tuned(seed: int = 0) -> tuple[Cnn, Program, Tensor]:
    torch.manual_seed(seed)
    model, x, y = Cnn(), torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
    model.dropout.p = 0.0
    program = trace(model, Inputs.of(x)).copy().train()
    losses = train(program, program.parameters(), x, y)
    assert losses[-1] < losses[0]
    return model, program.eval(), x


def test_weights_of_a_fine_tuned_program_load_into_the_model_and_give_its_outputs() -> None:
    model, program, x = fine_tuned()
    model.eval()
    assert not torch.allclose(program(x), model(x))
    model.load_state_dict(program.state_dict())
    torch.testing.assert_close(program(x), model(x))


def test_a_program_is_trained_as_the_model_is() -> None:
    torch.manual_seed(0)
    model, x, y = Cnn(), torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
    model.dropout.p = 0.0
    program = trace(model, Inputs.of(x)).copy().train()
    assert train(program, program.parameters(), x, y) == pytest.approx(
        train(model.train(), model.parameters(), x, y), rel=1e-4
    )
    for name, value in model.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(program.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_training_updates_the_running_statistics_and_evaluation_does_not() -> None:
    program = trace(Cnn(), Inputs.of(torch.randn(4, 3, 8, 8))).copy()
    before = {name: value.clone() for name, value in program.state_dict().items() if "running" in name}
    program.eval()(torch.randn(4, 3, 8, 8))
    assert all(torch.equal(program.state_dict()[name], value) for name, value in before.items())
    program.train()(torch.randn(4, 3, 8, 8))
    assert not any(torch.equal(program.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_program_has_the_state_dict_of_the_model(name: str) -> None:
    found = case(name)
    program, expected = trace(found.model, found.inputs), found.model.state_dict()
    assert set(program.state_dict()) <= set(expected)
    assert all(torch.equal(value, expected[key]) for key, value in program.state_dict().items())
    assert set(expected) - set(program.state_dict()) == set()


def pointers(program: Program) -> set[int]:
    module = program.graph_module
    return {value.data_ptr() for value in [*module.parameters(), *module.buffers()]}


@pytest.mark.parametrize("name", NAMES)
def test_a_fork_shares_the_tensors_and_a_copy_shares_none(name: str) -> None:
    found = case(name)
    program = trace(found.model, found.inputs)
    fork, copy = program.fork(), program.copy()
    assert pointers(fork) == pointers(program)
    assert pointers(copy).isdisjoint(pointers(program)) and len(pointers(copy)) == len(pointers(program))
    for one in (fork, copy):
        assert one.graph is not program.graph
        with torch.no_grad():
            torch.testing.assert_close(found.inputs.call(one), found.inputs.call(program))


def test_rewriting_a_fork_leaves_the_program_as_it_was() -> None:
    program = trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))
    before, x = [node.name for node in program.graph.nodes], torch.randn(2, 3, 8, 8)
    expected = program(x)
    fork = program.fork()
    for node in [*fork.calls(aten.relu.default)]:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        fork.graph.erase_node(node)
    set_tensor(fork.graph_module, "head.weight", nn.Parameter(torch.zeros(5, 8)))
    fork.graph_module.recompile()
    fork.train()
    assert [node.name for node in program.graph.nodes] == before
    assert torch.equal(program(x), expected) and not torch.equal(fork.eval()(x), expected)


def test_tied_weights_stay_tied_in_a_copy_and_are_trained_as_one() -> None:
    ids = torch.randint(0, 11, (2, 7))
    program = trace(Tied(), Inputs.of(ids)).copy()
    assert len([*program.parameters()]) == 1
    with torch.no_grad():
        next(program.parameters()).zero_()
    assert program(ids).abs().sum() == 0


def test_a_buffer_that_is_not_saved_stays_out_of_the_state_dict_of_copies() -> None:
    program = trace(Regions(), Inputs.of(torch.randn(2, 4)))
    for one in (program, program.fork(), program.copy()):
        assert "offset" not in one.state_dict()


def test_train_mode_drops_out_in_attention_of_copies_too() -> None:
    program = trace(Attention(0.5), Inputs.of(torch.randn(2, 5, 8))).copy()
    x = torch.randn(2, 5, 8)
    expected = program(x)
    assert not torch.equal(program.train()(x), program(x))
    assert torch.equal(program.eval()(x), expected)
    verify(program, "a change of mode")


def test_recurrent_layers_drop_out_in_training_only() -> None:
    found = case("recurrent")
    program = trace(found.model, found.inputs)
    (x,) = found.inputs.leaves()
    assert torch.equal(program(x), program(x))
    assert not torch.equal(program.train()(x), program(x))


def test_a_program_is_called_as_the_model_is() -> None:
    found = case("several")
    program = trace(found.model, found.inputs)
    a, b = torch.ones(3, 4), torch.zeros(3, 4)
    result = program.module()((a, b), mask=torch.ones(3, 3))
    assert (
        set(result) == {"total", "parts"}
        and isinstance(result["parts"], tuple)
        and isinstance(result["parts"][1], list)
    )
    torch.testing.assert_close(result, found.model((a, b), torch.ones(3, 3)))


def test_calls_finds_nodes_by_operator_and_tensor_reads_their_constants() -> None:
    model = Cnn()
    program = trace(model, Inputs.of(torch.randn(2, 3, 8, 8)))
    first, second = program.calls(aten.conv2d.default)
    assert program.tensor(first.args[1]) is model.stem[0].weight
    assert program.tensor(first.args[0]) is None and program.tensor(None) is None and program.tensor(3) is None
    assert op_name(first) == "aten.conv2d" and second in [*program.calls()]
    assert [node.name for node in program.placeholders] == ["x"] and program.output.op == "output"


def test_an_added_tensor_gets_a_free_name_and_is_readable() -> None:
    program = trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8))).fork()
    first = add_tensor(program, "head.extra", torch.ones(3))
    second = add_tensor(program, "head.extra", torch.zeros(3))
    assert first.target != second.target
    assert program.tensor(first).sum() == 3 and program.tensor(second).sum() == 0  # type: ignore[union-attr]
    assert get_attribute(program.graph_module, "head.extra").sum() == 3
    verify(program, "adding tensors")


def test_adding_a_tensor_under_the_name_of_an_unread_one_overwrites_none() -> None:
    model = Cnn()
    program = trace(model, Inputs.of(torch.randn(2, 3, 8, 8))).fork()
    for node in [node for node in program.graph.nodes if node.target == "head.bias"]:
        for user in [*node.users]:
            user.update_arg(2, None)
        program.graph.erase_node(node)
    node = add_tensor(program, "head.bias", torch.full((5,), 9.0))
    assert program.tensor(node).sum() == 45  # type: ignore[union-attr]
    assert model.head.bias is not None and not torch.equal(model.head.bias, torch.full((5,), 9.0))
