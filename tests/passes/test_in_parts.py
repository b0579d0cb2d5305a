"""Attention and layer norm in parts: the same function, and integers in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from planish.compiler.inputs import Inputs
from planish.compiler.rules import verify
from planish.compiler.scheme import IntegerOp, IntegerType
from planish.passes.in_parts import write_in_parts
from planish.passes.quantize_int8 import QuantizeInt8
from tests.passes.nets import SCHEME, aten, context, the, traced

ATTENTION = aten.scaled_dot_product_attention.default
S8 = IntegerType(torch.int8, -128, 127, symmetric=False)
SHARES = replace(S8, fixed=(1 / 256, -128))
IN_PARTS = replace(
    SCHEME,
    activation=S8,
    ops=(
        *(op if op.weight is None else replace(op, quantizes_output=True) for op in SCHEME.ops),
        IntegerOp((aten.mul.Tensor,), (0, 1)),
        IntegerOp((aten.matmul.default,), (0, 1)),
        IntegerOp((aten.softmax.int,), (0,), result_type=SHARES),
    ),
    transparent=(*SCHEME.transparent, aten.transpose.int, aten.permute.default, aten.unbind.int),
    in_parts=(ATTENTION,),
)


class Attends(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer, self.options = nn.Linear(8, 24), options

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.layer(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, **self.options).flatten(2)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}])
def test_attention_in_parts_is_attention(options: dict[str, Any]) -> None:
    x = torch.randn(3, 5, 8)
    program = traced(Attends(**options), x).fork()
    wanted = program(x)
    write_in_parts(program, [ATTENTION])
    verify(program, "writing in parts")
    assert not [*program.calls(ATTENTION)]
    assert len([*program.calls(aten.matmul.default)]) == 2
    torch.testing.assert_close(program(x), wanted)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.LayerNorm((5, 8)), nn.LayerNorm(8, 0.1, False)], ids=str)
def test_a_layer_norm_in_parts_is_that_layer_norm(norm: nn.Module) -> None:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 5, 8) * 3 + 1
    program = traced(norm, x).fork()
    wanted = program(x)
    write_in_parts(program, [aten.layer_norm.default])
    verify(program, "writing in parts")
    assert not [*program.calls(aten.layer_norm.default)]
    torch.testing.assert_close(program(x), wanted)


CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
MASKS = {
    "causal": {"is_causal": True},
    "keys": {"attn_mask": CAUSAL},
    "minus infinity": {"attn_mask": torch.zeros(5, 5).masked_fill(~CAUSAL, -torch.inf)},
    "distances": {"attn_mask": torch.linspace(-1, 1, 25).reshape(5, 5)},
    "distances and keys": {
        "attn_mask": torch.linspace(-1, 1, 25).reshape(5, 5).masked_fill(~CAUSAL, -1e9),
        "scale": 1.0,
    },
}


@pytest.mark.parametrize("options", MASKS.values(), ids=MASKS)
def test_a_masked_attention_in_parts_gives_masked_keys_less_than_half_a_step_of_softmax(options: Any) -> None:
    model, x = Attends(**options), torch.randn(3, 5, 8)
    program = traced(model, x).fork()
    wanted, largest = program(x).detach(), float(model.layer(x).detach().abs().max())
    assert write_in_parts(program, [ATTENTION], [Inputs((x,))]) == []
    verify(program, "writing in parts")
    assert float((program(x).detach() - wanted).abs().max()) < 2 * largest / 512
    low = [float(tensor.min()) for tensor in program.state_dict().values()]
    assert all(value > -100 for value in low), "no number that takes all of the integers"


def test_an_attention_whose_mask_is_computed_stays_whole_and_is_told() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attends = Attends()

        def forward(self, x: Tensor) -> Tensor:
            self.attends.options = {"attn_mask": (x[..., 0] > 0)[:, None, None, :]}
            return self.attends(x)

    x = torch.randn(3, 5, 8)
    told = context(IN_PARTS, x)
    made = QuantizeInt8().run(traced(Padded(), x), told)
    assert len([*made.calls(ATTENTION)]) == 1
    (decision,) = (decision for decision in told.decisions if decision.op == "aten.scaled_dot_product_attention")
    assert decision.outcome == "float" and "a mask that is computed" in decision.reason


def test_shares_have_the_scale_that_the_runtime_has_built_in_whatever_the_data() -> None:
    x = torch.randn(8, 5, 8)
    told = context(IN_PARTS, x)
    made = QuantizeInt8().run(traced(Attends(), x), told)
    verify(made, "quantizing")
    (quantize,) = the(made, aten.softmax.int).users
    assert quantize.args[1:5] == (1 / 256, -128, -128, 127)
    assert {d.outcome for d in told.decisions} == {"int8"}


def test_constants_beside_integers_become_integers_where_the_scheme_says_so() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.shift = nn.Linear(8, 8), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.shift

    x, whole = torch.randn(4, 8), IntegerType(torch.int8, -127, 127, symmetric=True)
    outcomes = {}
    for beside in (None, whole):
        ops = (*(op for op in IN_PARTS.ops if aten.add.Tensor not in op.operators),)
        told = context(replace(IN_PARTS, ops=(*ops, IntegerOp((aten.add.Tensor,), (0, 1), beside=beside))), x)
        made = QuantizeInt8().run(traced(Shifted(), x), told)
        verify(made, "quantizing")
        outcomes[beside] = next(decision.outcome for decision in told.decisions if decision.op == "aten.add")
    assert outcomes == {None: "float", whole: "int8"}
    constant = the(made, aten.add.Tensor).args[1]
    assert isinstance(constant, fx.Node) and constant.args[3:] == (-127, 127, torch.int8)
