from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from planish.compiler.program import source_module, source_type
from planish.compiler.rules import verify
from planish.compiler.trace import trace, trace_with_notes
from tests.compiler.models import NAMES, Attention, Cnn, Counting, Regions, case, rows

aten = torch.ops.aten


@pytest.mark.parametrize("name", [*NAMES, "bert"])
def test_a_program_computes_what_the_model_computes_at_any_batch_size(name: str) -> None:
    found = case(name)
    program = trace(found.model, found.inputs)
    verify(program, "tracing")
    for count in (2, 5, 1):
        inputs = rows(found.inputs, count)
        with torch.no_grad():
            torch.testing.assert_close(inputs.call(program), inputs.call(found.model))


@pytest.mark.parametrize("name", NAMES)
def test_tracing_leaves_the_model_as_it_was(name: str) -> None:
    found = case(name)
    found.model.train()
    next(found.model.children()).eval()
    modes = [module.training for module in found.model.modules()]
    state = {key: value.clone() for key, value in found.model.state_dict().items()}
    generator = torch.random.get_rng_state()
    trace(found.model, found.inputs)
    assert [module.training for module in found.model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), generator)
    for key, value in found.model.state_dict().items():
        assert torch.equal(value, state[key])
    with torch.no_grad():
        found.inputs.call(found.model.eval())


def test_a_batch_of_one_is_dynamic_all_the_same() -> None:
    program = trace(Cnn(), Inputs.of(torch.randn(1, 3, 8, 8)))
    assert program.dynamic_axes == {"x": {0: "batch"}}
    assert program(torch.randn(7, 3, 8, 8)).shape == (7, 5)


def test_a_batch_that_cannot_change_is_fixed_and_the_note_says_so() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(3, 4) * 2

    found = trace_with_notes(Fixed(), Inputs.of(torch.randn(3, 4)))
    assert found.program.dynamic_axes == {}
    assert len(found.notes) == 1 and found.notes[0].startswith("The batch is fixed at 3")
    assert found.program(torch.ones(3, 4)).sum() == 24


def test_a_dynamic_batch_leaves_no_note() -> None:
    assert trace_with_notes(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8))).notes == ()


def test_an_exported_program_is_taken_with_its_own_inputs_and_axes() -> None:
    model, x = Cnn().eval(), torch.randn(3, 3, 8, 8)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    program = trace(exported)
    assert program.dynamic_axes == {"x": {0: "batch"}}
    assert torch.equal(program.example_inputs.leaves()[0], x)
    torch.testing.assert_close(program(torch.ones(5, 3, 8, 8)), model(torch.ones(5, 3, 8, 8)))


def test_an_exported_program_keeps_two_axes_of_one_size_apart() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(-1)

    axes = ({0: torch.export.Dim("rows"), 1: torch.export.Dim("length")},)
    program = trace(torch.export.export(Sum(), (torch.randn(4, 4, 3),), dynamic_shapes=axes))
    (names,) = program.dynamic_axes.values()
    assert len(set(names.values())) == 2
    verify(program, "tracing")
    shape = program.output.args[0][0].meta["val"].shape  # type: ignore[index,union-attr]
    assert shape[0].node.expr != shape[1].node.expr


def test_a_program_is_forked() -> None:
    program = trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))
    again = trace(program)
    assert again.graph is not program.graph
    assert again.state_dict()["head.weight"] is not None
    assert {value.data_ptr() for value in again.state_dict().values()} == {
        value.data_ptr() for value in program.state_dict().values()
    }


def test_in_place_ops_become_functional_where_nothing_else_sees_the_difference() -> None:
    program = trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))
    assert not [node for node in program.calls() if node.target._schema.is_mutable]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "view", ["x[:, :2]", "x.t()", "x.view(-1)", "x.split(2, 1)[0]", "x.reshape(-1)", "x.expand(2, 4)"]
)
def test_an_in_place_op_that_another_view_sees_keeps_its_meaning(view: str) -> None:
    class Written(nn.Module):
        def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
            x = given * 1
            views: dict[str, Callable[[], Tensor]] = {
                "x[:, :2]": lambda: x[:, :2],
                "x.t()": lambda: x.t(),
                "x.view(-1)": lambda: x.view(-1),
                "x.split(2, 1)[0]": lambda: x.split(2, 1)[0],
                "x.reshape(-1)": lambda: x.reshape(-1),
                "x.expand(2, 4)": lambda: x.expand(2, 4),
            }
            part = views[view]()
            part.add_(1)
            return x * 3, part

    given = torch.randn(2, 4)
    program = trace(Written(), Inputs.of(given))
    torch.testing.assert_close(program(given), Written()(given))


def test_no_grad_regions_become_plain_nodes() -> None:
    program = trace(Regions(), Inputs.of(torch.randn(2, 4)))
    assert not [node for node in program.calls() if isinstance(node.target, torch._ops.HigherOrderOperator)]
    assert len([*program.calls(aten.linear.default)]) == 2


def test_views_become_reshapes() -> None:
    program = trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))
    assert not [*program.calls(aten.view.default)] and [*program.calls(aten.reshape.default)]


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_by_a_vector_becomes_a_product(bias: bool) -> None:
    class Project(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(())) if bias else None

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight, self.bias)

    model, x = Project(), torch.randn(4, 5, 6)
    program = trace(model, Inputs.of(x[:2]))
    assert not [*program.calls(aten.linear.default)] and [*program.calls(aten.matmul.default)]
    torch.testing.assert_close(program(x), model(x))


def test_nodes_know_the_module_they_come_from() -> None:
    program = trace(Cnn(), Inputs.of(torch.randn(2, 3, 8, 8)))
    sources = [(source_module(node), source_type(node)) for node in program.calls(aten.conv2d.default)]
    assert [name for name, _ in sources] == ["stem.0", "branch.0"]
    assert all(kind.endswith("Conv2d") for _, kind in sources)


def test_a_batch_that_one_input_fixes_is_fixed_for_all() -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x.reshape(2, 3) * mask[torch.arange(2)]

    found = trace_with_notes(Chosen(), Inputs.of((torch.randn(2, 3), torch.ones(2, 3))))
    assert not found.program.dynamic_axes
    assert found.notes == ("The batch is fixed at 2: the model computes with its size as a constant.",)


def test_a_branch_on_values_is_a_user_error_that_names_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return -x

    line = inspect.getsourcelines(Branch.forward)[1] + 1
    with pytest.raises(UserError, match=rf"Branch cannot be traced at .*test_trace\.py:{line} .*torch\.where"):
        trace(Branch(), Inputs.of(torch.randn(2, 3)))
    assert "def forward" not in capsys.readouterr().err


def test_a_module_that_forward_moves_is_a_user_error_that_names_the_line() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.head = self.head.to(x.dtype)
            return self.head(x)

    line = inspect.getsourcelines(Moves.forward)[1] + 1
    with pytest.raises(UserError, match=rf"Moves cannot be traced at .*test_trace\.py:{line} .*before the call"):
        trace(Moves(), Inputs.of(torch.randn(2, 3)))


def test_a_tensor_that_leaves_pytorch_is_a_user_error_that_names_the_line() -> None:
    class Leaves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.detach().numpy().sum())

    line = inspect.getsourcelines(Leaves.forward)[1] + 1
    with pytest.raises(UserError, match=rf"test_trace\.py:{line} .*numpy"):
        trace(Leaves(), Inputs.of(torch.randn(2, 3)))


def test_inputs_of_a_wrong_shape_are_a_user_error() -> None:
    with pytest.raises(UserError, match="example_inputs"):
        trace(Cnn(), Inputs.of(torch.randn(2, 4, 8, 8)))


def test_inputs_with_nan_are_a_user_error() -> None:
    with pytest.raises(UserError, match="NaN"):
        trace(Cnn(), Inputs.of(torch.full((2, 3, 8, 8), torch.nan)))


def test_attention_drops_out_in_training_and_not_in_evaluation() -> None:
    model = Attention(0.3)
    program = trace(model, Inputs.of(torch.randn(2, 5, 8)))
    (node,) = program.calls(aten.scaled_dot_product_attention.default)

    def dropout() -> object:
        return node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)

    assert dropout() == 0.0
    program.train()
    assert dropout() == 0.3
    x = torch.randn(2, 5, 8)
    assert not torch.equal(program(x), program(x))
    assert torch.equal(program.eval()(x), program(x))


def test_dropout_in_a_program_drops_what_it_drops_in_the_model() -> None:
    class Dropping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, self.training)

    model = Dropping()
    program = trace(model, Inputs.of(torch.ones(2, 100))).train()
    torch.manual_seed(1)
    expected = model.train()(torch.ones(2, 100))
    torch.manual_seed(1)
    assert torch.equal(program(torch.ones(2, 100)), expected)
    assert torch.equal(program.eval()(torch.ones(2, 100)), torch.ones(2, 100))


def test_a_write_into_a_part_of_a_buffer_is_kept() -> None:
    program = trace(Counting(), torch.randn(2, 3)).copy()
    program(torch.randn(2, 3))
    assert program.state_dict()["calls"].tolist() == [0, 1, 1, 1]
