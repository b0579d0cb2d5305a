from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.compiler.trace import trace

aten = torch.ops.aten


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x * 1)  # a result of its own: inputs are not written


def writes(program: Program) -> list[fx.Node]:
    return [node for node in program.calls() if getattr(node.target, "_schema", None) and _mutable(node)]


def _mutable(node: fx.Node) -> bool:
    return bool(node.target._schema.is_mutable)  # type: ignore[union-attr]


def traced(function: Callable[[Tensor], object]) -> Program:
    """The Program of ``function``, which computes the same."""
    given = torch.randn(3, 4, 5)
    program = trace(Calls(function), Inputs.of(given))
    verify(program, "tracing")
    for rows in (given, torch.randn(2, 4, 5)):
        torch.testing.assert_close(program(rows), Calls(function)(rows))
    return program


def assigned(x: Tensor) -> Tensor:
    x[:, 1] = x[:, 2] + 1
    return x


def broadcast_and_cast(x: Tensor) -> Tensor:
    x[:, 1:3, ::2] = torch.arange(3)
    return x


def nested(x: Tensor) -> Tensor:
    x[:, 1:][:, 2, :3] = 7.0
    return x * 2


def added(x: Tensor) -> Tensor:
    x[:, :2] += x[:, 2:]
    return x


def again_and_again(x: Tensor) -> Tensor:
    for index in range(3):
        x[:, index] = x[:, index + 1] * index
    return x.relu_()


def whole(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x + 1
    y.copy_(x)
    y.add_(1)
    return x, y


def result_read(x: Tensor) -> tuple[Tensor, Tensor]:
    part = x[:, 0].mul_(2)
    x[:, 0] += 1
    return part * 1, x


@pytest.mark.parametrize("function", [assigned, broadcast_and_cast, nested, added, again_and_again, whole])
def test_a_write_into_a_part_becomes_the_result_of_an_operator(function: Callable[[Tensor], object]) -> None:
    assert not writes(traced(function))


def test_a_part_that_was_returned_by_a_write_shows_the_next_one() -> None:
    traced(result_read)


def test_values_that_fit_are_written_without_a_copy_of_them() -> None:
    program = traced(assigned)
    assert not [*program.calls(aten.copy.default)] and [*program.calls(aten.select_scatter.default)]


VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: x[:, 1],
    lambda x: x[:, 1:3],
    lambda x: x[:, ::2, 1:],
    lambda x: x[:, 3, 2],
    lambda x: x.transpose(1, 2),
    lambda x: x.reshape(-1, 20),
    lambda x: x.split(2, 1)[1],
]
WRITES: list[Callable[[Tensor, Tensor], object]] = [
    lambda part, x: part.add_(1),
    lambda part, x: part.mul_(part),
    lambda part, x: part.fill_(3),
    lambda part, x: part.copy_(part.detach() * 2),
    lambda part, x: part.sub_(x.sum()),
    lambda part, x: part.clamp_(min=0).add_(0.5),
]
steps = st.lists(
    st.tuples(st.sampled_from(VIEWS), st.sampled_from(VIEWS), st.sampled_from(WRITES), st.booleans()),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(steps=steps)
def test_any_sequence_of_writes_into_parts_of_one_tensor_means_what_it_means_in_torch(
    steps: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[..., object], bool]],
) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        kept = []
        for first, second, write, keep in steps:
            part = first(x)
            if part.shape == x.shape and first is not VIEWS[5]:
                part = second(part)
            write(part, x)
            if keep:
                kept.append(part)
        return (x, *(part * 1 for part in kept))

    traced(function)
