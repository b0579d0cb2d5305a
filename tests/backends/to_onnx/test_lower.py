"""The ONNX graph as a whole: names, axes, forms that were measured to run fast, and what is refused."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.backends.to_onnx.emitter import Unsupported
from planish.backends.to_onnx.lower import to_onnx, unsupported
from planish.compiler.errors import LoweringError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.trace import trace
from tests.backends.to_onnx.families import relative_error, run_onnx
from tests.backends.to_onnx.op_oracle import lowered

importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operators
quantized = torch.ops.quantized_decomposed


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
        return {
            "sum": self.layer(left) + right,
            "none": None,
            "left": left,
            "weight": self.layer.weight,
            "again": right,
        }


def test_inputs_are_named_like_the_arguments_and_axes_keep_their_names() -> None:
    model = to_onnx(trace(Named(), Inputs((torch.ones(2, 4), torch.ones(2, 4)))), 20)
    assert [(value.name, str(value.shape)) for value in model.graph.inputs] == [
        ("left", "[batch,4]"),
        ("right", "[batch,4]"),
    ]
    assert [value.name for value in model.graph.outputs] == ["output_0", "output_2", "output_3", "output_4"]
    assert str(model.graph.outputs[0].shape) == "[batch,4]"


def test_every_node_says_which_module_it_comes_from() -> None:
    model = to_onnx(trace(Named(), Inputs((torch.ones(2, 4), torch.ones(2, 4)))), 20)
    assert next(node for node in model.graph if node.op_type == "Gemm").metadata_props["planish.module"] == "layer"


def test_a_residual_in_front_of_a_layer_norm_is_a_sum() -> None:
    model = lowered(lambda x: F.layer_norm(x + x.relu(), (4,)) + x, torch.randn(2, 3, 4))
    assert kinds(model)["Sum"] == 1
    assert kinds(model)["Add"] == 1


def test_a_zero_padding_goes_into_the_convolution() -> None:
    weight = torch.ones(2, 2, 3, 3)
    model = lowered(lambda x: F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, stride=2), torch.randn(2, 2, 8, 8))
    assert kinds(model) == {"Conv": 1}


def test_nothing_unused_stays_in_the_model() -> None:
    model = lowered(lambda x: x.max(-1)[0], torch.randn(2, 4))
    assert kinds(model)["ArgMax"] == 0


def quantized_weight(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scales = weight.abs().amax(1) / 127
    return torch.round(weight / scales[:, None]).to(torch.int8), scales, torch.zeros(len(weight), dtype=torch.int64)


class QuantizedLinear(nn.Module):
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        weight, scales, zeros = quantized_weight(torch.randn(6, 4))
        for name, tensor in (("weight", weight), ("scales", scales), ("zeros", zeros), ("bias", torch.randn(6))):
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        integers = quantized.quantize_per_tensor(x, 0.05, 128, 0, 255, torch.uint8)
        x = quantized.dequantize_per_tensor(integers, 0.05, 128, 0, 255, torch.uint8)
        weight = quantized.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -128, 127, torch.int8)
        return F.linear(x, weight, self.bias)


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_a_quantized_linear_is_matmul_and_sum_on_integers(shape: tuple[int, ...]) -> None:
    module = QuantizedLinear()
    model = to_onnx(trace(module, Inputs((torch.randn(2, *shape),))), 20)
    assert kinds(model) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1, "Sum": 1}
    x = torch.randn(5, *shape)
    (got,) = run_onnx(model, Inputs((x,)))
    assert relative_error(module(x), got) < 1e-5


def test_a_quantized_table_is_read_as_integers() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randint(-128, 127, (20, 4), dtype=torch.int8))

        def forward(self, x: Tensor) -> Tensor:
            return F.embedding(x, quantized.dequantize_per_tensor(self.table, 0.1, 3, -128, 127, torch.int8))

    module, x = Table(), torch.randint(0, 20, (3, 5))
    model = to_onnx(trace(module, Inputs((x,))), 20)
    assert [node.op_type for node in model.graph] == ["Gather", "DequantizeLinear"]
    assert relative_error(module(x), run_onnx(model, Inputs((x,)))[0]) == 0


def unsupported_program() -> Program:
    return trace(nn.Sequential(nn.Linear(4, 4), nn.Sequential(Digamma())), Inputs((torch.ones(2, 4),)))


class Digamma(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.digamma(x)


def test_an_operator_without_a_rule_is_named_with_its_module() -> None:
    program = unsupported_program()
    assert [str(node.target) for node in unsupported(program)] == ["aten.digamma.default"]
    with pytest.raises(Unsupported, match=r"aten\.digamma.*from module 1\.0"):
        to_onnx(program, 20)


def test_an_opset_that_is_too_old_is_refused() -> None:
    with pytest.raises(LoweringError, match="opset 17 or later"):
        to_onnx(unsupported_program(), 13)
