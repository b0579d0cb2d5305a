"""Sparse weights all the way into the files for the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import planish
from planish.passes.quantize_int8 import QuantizeInt8
from planish.passes.sparsify import Sparsify
from planish.passes.training.settings import Training
from tests.passes.sparsity.test_permutation import Block
from tests.passes.test_sparsify import Net, X, is_two_four


def kernels(model: onnx.ModelProto) -> Iterator[tuple[str, Tensor]]:
    """The type and the constant weight [outputs, inputs, …] of every node that multiplies by one."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    stored = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            name = stored.get(node.input[1], node.input[1])
            if name in values:
                weight: np.ndarray = values[name].copy()
                transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
                yield str(weight.dtype), torch.from_numpy(weight if node.op_type == "Conv" or transposed else weight.T)


def eligible(weight: Tensor) -> bool:
    return weight.shape[1] % 16 == 0 and weight.shape[0] % 8 == 0


@pytest.mark.parametrize(("model", "example", "count"), [(Net(), X[:8], 2), (Block(), torch.randn(8, 5, 6), 6)])
@pytest.mark.parametrize("backend", ["onnx", "tensorrt"])
def test_every_eligible_weight_of_the_int8_artifact_is_two_four(
    model: nn.Module, example: Tensor, count: int, backend: str, tmp_path: Path
) -> None:
    result = planish.compile(
        model, target="a100", backend=backend, example_inputs=example, calibration=[example],
        passes=[Sparsify(criterion="sparsegpt"), QuantizeInt8()], output=tmp_path / "artifact",
    )  # fmt: skip
    sparse, quantized = result.report.steps[0].decisions, result.report.steps[-1].decisions
    assert [each.outcome for each in sparse].count("2:4") == count
    in_integers = {each.module for each in quantized if each.outcome == "int8"}
    found = [*kernels(onnx.load(tmp_path / "artifact" / "model.onnx"))]
    of_eligible = [(dtype, weight) for dtype, weight in found if eligible(weight)]
    assert len(of_eligible) == count and all(is_two_four(weight) for _, weight in of_eligible)
    assert all(dtype == "int8" for dtype, _ in of_eligible) and len(in_integers) >= count


def test_zeros_stay_from_training_over_folding_and_int8_into_the_file(tmp_path: Path) -> None:
    train = [(x, torch.arange(len(x)) % 10) for x in X.split(16)]
    planish.compile(
        Net(), target="a100", backend="onnx", example_inputs=X[:8], calibration=[X], train=train,
        passes=[Sparsify(training=Training(steps=6, precision="fp32"), ramp=0.5), QuantizeInt8()],
        output=tmp_path / "artifact",
    )  # fmt: skip
    found = [*kernels(onnx.load(tmp_path / "artifact" / "model.onnx"))]
    assert [is_two_four(weight) for _, weight in found if eligible(weight)] == [True, True]
