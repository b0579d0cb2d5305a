from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.compiler.program import Program
from planish.compiler.rules import verify
from planish.passes.erase_noops import EraseNoOps
from tests.compiler.models import Counting
from tests.passes.nets import RandomCnn, context, traced, warm

Function = Callable[[Tensor], object]


class Calls(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def erase(program: Program) -> Program:
    erased = EraseNoOps().run(program, context())
    verify(erased, "erasing")
    return erased


def operators(program: Program) -> list[str]:
    return [str(node.target).removeprefix("aten.") for node in program.calls()]


USELESS: dict[str, Function] = {
    "dropout": lambda x: nn.functional.dropout(x + 1, 0.5, training=False),
    "detach": lambda x: (x + 1).detach(),
    "contiguous": lambda x: (x + 1).contiguous(),
    "clone": lambda x: (x + 1).clone(),
    "to the same dtype": lambda x: (x + 1).to(torch.float32),
    "type_as": lambda x: (x + 1).type_as(x),
    "reshape to the same shape": lambda x: (x + 1).reshape(x.shape),
    "flatten of two axes": lambda x: (x + 1).flatten(1) if x.ndim == 2 else x + 1,
    "expand to the same shape": lambda x: (x + 1).expand(-1, 6),
    "whole slice": lambda x: (x + 1)[:, :],
    "repeat once": lambda x: (x + 1).repeat(1, 1),
    "several": lambda x: nn.functional.dropout((x + 1)[:].clone().float(), 0.1, training=False).reshape(-1, 6),
}


@pytest.mark.parametrize("name", USELESS)
def test_an_operator_that_returns_its_input_is_erased(name: str) -> None:
    x = torch.randn(4, 6)
    program = traced(Calls(USELESS[name]), x)
    erased = erase(program)
    assert operators(erased) == ["add.Tensor"]
    assert torch.equal(erased(x), program(x))


USEFUL: dict[str, Function] = {
    "to another dtype": lambda x: x.to(torch.float64),
    "to integers and back": lambda x: x.long().float(),
    "a part": lambda x: x[:, 1:],
    "a step": lambda x: x[:, ::2],
    "reversed sizes": lambda x: x.reshape(6, -1),
    "transposed square": lambda x: x[:4, :4].t(),
    "expand": lambda x: x[:, :1].expand(-1, 6),
    "repeat": lambda x: x.repeat(2, 1),
    "flatten": lambda x: x.flatten(),
}


@pytest.mark.parametrize("name", USEFUL)
def test_an_operator_that_changes_its_input_stays(name: str) -> None:
    x = torch.randn(4, 6)
    program = traced(Calls(USEFUL[name]), x)
    erased = erase(program)
    got, expected = erased(x), program(x)
    assert torch.equal(got, expected) and got.dtype == expected.dtype
    assert len(operators(erased)) >= 1


def _write_into(copy: Callable[[Tensor], Tensor]) -> Function:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        original = x * 2
        copied = copy(original)
        copied.add_(1)
        return copied, original

    return function


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x.clone(),
        lambda x: x.transpose(0, 1).contiguous(),
        lambda x: x.transpose(0, 1).clone(),
        lambda x: x.to(torch.float32, copy=True),
        lambda x: x.repeat(1, 1),
        lambda x: x.transpose(0, 1).reshape(4, 6),
    ],
    ids=["clone", "transposed contiguous", "transposed clone", "to with copy", "repeat", "transposed reshape"],
)
def test_a_copy_that_is_written_into_keeps_protecting_the_original(copy: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6)
    model = Calls(_write_into(copy))
    program = traced(model, x)
    erased = erase(program)
    torch.testing.assert_close(erased(x), model(x))


def test_what_nobody_reads_is_erased_and_inputs_stay() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 2), nn.Linear(6, 3)

        def forward(self, x: Tensor, ignored: Tensor) -> Tensor:
            self.unused(ignored)
            result: Tensor = self.used(x)
            return result

    x = torch.randn(4, 6)
    program = traced(Unused(), x, x)
    erased = erase(program)
    assert operators(erased) == ["linear.default"]
    assert len(erased.placeholders) == 2
    assert torch.equal(erased(x, x), program(x, x))


def test_an_input_that_is_returned_as_it_is_can_be_erased_to() -> None:
    x = torch.randn(4, 6)
    erased = erase(traced(Calls(lambda x: (x.detach(), x.clone())), x))
    assert operators(erased) == []
    first, second = erased(x)
    assert torch.equal(first, x) and torch.equal(second, x)


def test_a_buffer_that_the_model_writes_is_still_written() -> None:
    x = torch.randn(4, 6)
    erased = erase(traced(Counting(), x))
    erased(x), erased(x)
    assert dict(erased.graph_module.named_buffers())["calls"].tolist() == [0, 2, 2, 2]


@settings(max_examples=8)
@given(choices=st.lists(st.integers(0, 6), min_size=1, max_size=5), rows=st.sampled_from([1, 3]))
def test_erasing_from_a_random_network_changes_no_bit_at_any_batch_size(choices: list[int], rows: int) -> None:
    model = nn.Sequential(nn.Dropout(0.5), warm(RandomCnn(choices)), nn.Identity(), nn.Flatten(1), nn.Dropout(0.1))
    program = traced(model.double(), torch.randn(2, 3, 6, 6, dtype=torch.float64))
    erased = erase(program)
    x = torch.randn(rows, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(erased(x), program(x), rtol=1e-10, atol=1e-10)
    assert not [name for name in operators(erased) if "dropout" in name or "flatten" in name]
    assert [name for name in operators(program) if "dropout" in name], "the original was changed"
