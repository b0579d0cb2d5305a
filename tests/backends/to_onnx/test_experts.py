"""Mixtures of experts: the operator that transformers has for them, against itself in ONNX Runtime."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from planish.backends.to_onnx.exporter import lower_any
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace
from tests.backends.to_onnx.op_oracle import assert_rule_agrees

pytest.importorskip("transformers.integrations.moe", reason="transformers has the operator")


@pytest.mark.parametrize("experts", [1, 2, 6])
def test_experts_agree_on_any_number_of_rows_none_included(experts: int) -> None:
    matrices = torch.randn(experts, 8, 4)

    def mixed(x: Tensor) -> Tensor:
        expert, order = x[:, :experts].argmax(1).sort()
        ends = torch.histc(expert.float(), experts, 0, experts).cumsum(0, dtype=torch.int32)
        product: Tensor = torch.ops.transformers.grouped_mm_fallback(x[order], matrices, ends)
        return product

    assert_rule_agrees(mixed, torch.randn(5, 8))


def test_experts_keep_their_rule_where_something_else_is_decomposed() -> None:
    matrices, ends = torch.randn(2, 8, 4), torch.tensor([2, 4], dtype=torch.int32)

    class Similar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.ops.transformers.grouped_mm_fallback(x, matrices, ends)
            return nn.functional.cosine_similarity(y, x[:, :4])

    model, told = lower_any(trace(Similar(), Inputs((torch.randn(4, 8),))), 20)
    assert "decomposed aten.cosine_similarity," in told
    assert not [node for node in model.graph if node.op_type == "Where"]  # as every expert computing every row has


def test_what_lies_behind_the_last_expert_is_zero() -> None:
    matrices, ends = torch.randn(2, 8, 4), torch.tensor([1, 2], dtype=torch.int32)
    grouped = torch.ops.transformers.grouped_mm_fallback
    assert grouped(torch.ones(5, 8), matrices, ends)[2:].eq(0).all()
    assert_rule_agrees(lambda x: grouped(x, matrices, ends), torch.randn(5, 8))
