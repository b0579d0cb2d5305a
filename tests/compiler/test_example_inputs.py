from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from planish.compiler.errors import UserError
from planish.compiler.example_inputs import find_example_inputs
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace


class Pooled(nn.Module):
    """A CNN that takes any size."""

    def __init__(self, kind: Any = nn.Conv2d, rank: int = 2) -> None:
        super().__init__()
        self.conv, self.rank = kind(3, 4, 3), rank

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x).flatten(2).mean(2)
        return result


class Fixed(nn.Module):
    """A CNN that takes images of 28 pixels and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dropout, self.head = nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.Linear(2 * 26 * 26, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.dropout(self.conv(x)).flatten(1))
        return result


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        result: Tensor = self.layer(left + right) * scale
        return result


def shapes(inputs: Inputs) -> list[list[int]]:
    return [list(leaf.shape) for leaf in inputs.leaves()]


def test_the_argument_comes_before_everything_else() -> None:
    model = Pooled()
    model.example_input_array = torch.zeros(2, 3, 9, 9)
    inputs, origin = find_example_inputs(model, torch.ones(1, 3, 5, 5), [torch.zeros(1, 3, 7, 7)])
    assert shapes(inputs) == [[1, 3, 5, 5]] and "given" in origin


def test_the_first_calibration_batch_comes_before_what_the_model_declares() -> None:
    model = Pooled()
    model.example_input_array = torch.zeros(2, 3, 9, 9)
    data = [(torch.zeros(4, 3, 7, 7), torch.zeros(4)), (torch.zeros(1, 3, 5, 5), torch.zeros(1))]
    inputs, origin = find_example_inputs(model, calibration=data)
    assert shapes(inputs) == [[4, 3, 7, 7]] and "calibration" in origin


def test_an_iterator_is_refused_because_its_first_batch_would_be_lost() -> None:
    data = iter([torch.zeros(4, 3, 7, 7)])
    with pytest.raises(TypeError, match="list"):
        find_example_inputs(Pooled(), calibration=data)
    assert next(data).shape == (4, 3, 7, 7)


def test_an_exported_program_and_a_program_bring_their_own() -> None:
    x = torch.ones(2, 3, 6, 6)
    exported = torch.export.export(Pooled().eval(), (x,))
    inputs, origin = find_example_inputs(exported)
    assert torch.equal(inputs.leaves()[0], x) and "ExportedProgram" in origin
    program = trace(exported)
    assert find_example_inputs(program)[0] is program.example_inputs
    fewer, _ = find_example_inputs(exported, calibration=[(torch.zeros(2, 3, 6, 6), torch.zeros(2))])
    assert shapes(fewer) == [[2, 3, 6, 6]]


def test_lightnings_example_input_array_may_be_a_tuple_or_a_dict() -> None:
    model = Pair()
    model.example_input_array = (torch.zeros(2, 4), torch.ones(2, 4))  # type: ignore[assignment]
    assert find_example_inputs(model)[0].args[1].sum() == 8
    model.example_input_array = {"left": torch.zeros(2, 4), "right": torch.ones(2, 4)}  # type: ignore[assignment]
    inputs, origin = find_example_inputs(model)
    assert set(inputs.kwargs) == {"left", "right"} and "example_input_array" in origin


def test_dummy_inputs_that_the_model_does_not_take_are_passed_over() -> None:
    class Vision(Pooled):
        dummy_inputs: ClassVar = {"input_ids": torch.zeros(2, 5, dtype=torch.int64)}

    class Text(nn.Module):
        dummy_inputs: ClassVar = {"input_ids": torch.zeros(2, 5, dtype=torch.int64)}

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)

        def forward(self, input_ids: Tensor) -> Tensor:
            result: Tensor = self.table(input_ids)
            return result

    inputs, origin = find_example_inputs(Text())
    assert list(inputs.kwargs) == ["input_ids"] and "dummy_inputs" in origin
    inputs, origin = find_example_inputs(Vision())
    assert shapes(inputs) == [[2, 3, 224, 224]] and "guess" in origin


@pytest.mark.parametrize("attribute", ["pretrained_cfg", "default_cfg"])
def test_timms_configuration_tells_the_size(attribute: str) -> None:
    model = Pooled()
    setattr(model, attribute, {"input_size": (3, 48, 40), "mean": (0.5,)})
    inputs, origin = find_example_inputs(model)
    assert shapes(inputs) == [[2, 3, 48, 40]] and attribute in origin


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Pooled(), [2, 3, 224, 224]),
        (Pooled(nn.Conv1d), [2, 3, 1024]),
        (Pooled(nn.Conv3d), [2, 3, 16, 64, 64]),
        (Fixed(), [2, 1, 28, 28]),
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), [2, 5]),
        (nn.LSTM(6, 3, batch_first=True), [2, 16, 6]),
    ],
)
def test_the_first_layer_tells_a_size_that_the_model_takes_and_the_guess_is_said(
    model: nn.Module, shape: list[int]
) -> None:
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, origin = find_example_inputs(model)
    assert shapes(inputs) == [shape]
    assert "guess" in origin and str(shape) in origin
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_head_that_is_registered_first_does_not_hide_the_first_convolution() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.conv(x).mean((2, 3)))
            return result

    assert shapes(find_example_inputs(Reversed())[0]) == [[2, 3, 224, 224]]


def test_embeddings_take_ids_in_their_range() -> None:
    inputs, _ = find_example_inputs(nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)))
    (ids,) = inputs.leaves()
    assert ids.dtype == torch.int64 and list(ids.shape) == [2, 16]
    assert ids.min() >= 0 and ids.max() < 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_have_the_dtype_of_the_parameters(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 3)).to(dtype)
    assert find_example_inputs(model)[0].leaves()[0].dtype == dtype
    model.example_input_array = torch.zeros(2, 4)
    assert find_example_inputs(model)[0].leaves()[0].dtype == dtype


def test_a_model_with_several_inputs_has_them_named() -> None:
    with pytest.raises(UserError, match=r"example_inputs.*left, right"):
        find_example_inputs(Pair())


def test_a_model_without_a_telling_layer_asks_for_the_argument() -> None:
    with pytest.raises(UserError, match="example_inputs"):
        find_example_inputs(nn.ReLU())


def test_a_model_that_takes_no_guess_says_what_was_tried_last() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("I want a graph")

    with pytest.raises(UserError, match=r"example_inputs.*Linear \[2, 16, 4\]: I want a graph"):
        find_example_inputs(Picky())


def test_lazy_layers_are_not_given_a_size_by_a_trial() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(UserError, match="example_inputs"):
        find_example_inputs(model)
    assert isinstance(model[2], nn.LazyLinear)


def test_two_calls_find_the_same_values_and_leave_the_random_state_alone() -> None:
    model = nn.Linear(4, 3)
    state = torch.random.get_rng_state()
    first, second = find_example_inputs(model)[0], find_example_inputs(model)[0]
    assert torch.equal(first.leaves()[0], second.leaves()[0])
    assert torch.equal(torch.random.get_rng_state(), state)
