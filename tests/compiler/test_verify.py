from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from planish.backends.to_onnx.backend import FILE, OnnxBackend
from planish.compiler.artifact import calling, constant_outputs
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context
from planish.compiler.errors import VerificationError
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.report import Error
from planish.compiler.signature import Signature
from planish.compiler.trace import trace
from planish.compiler.verify import demand_float, demand_quantized, errors, is_quantized, snr_db, worst_snr
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.quantize_int8 import QuantizeInt8
from tests.compiler.fakes import context_of, vnni

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        y = (y + self.b(y)).relu()
        result: Tensor = self.head(y.mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(3)
    traced = trace(Net().eval(), Inputs.of(X))
    return FoldBatchNorm().run(traced, context_of(traced))


@pytest.fixture(scope="module")
def quantized(program: Program) -> Program:
    scheme = OnnxBackend().scheme(vnni())
    return QuantizeInt8().run(program, Context(vnni(), scheme, Calibration([Inputs.of(X)], "given")))


def lowered(program: Program, folder: Path, damage: Callable[[onnx.ModelProto], None] | None = None) -> object:
    """What the lowered file computes, after ``damage`` was done to it."""
    backend = OnnxBackend()
    done = backend.lower(program, vnni(), folder)
    if damage:
        model = onnx.load(folder / FILE)
        damage(model)
        onnx.save(model, folder / FILE)
    signature = Signature.of(program.graph)
    return calling(backend.load(folder, vnni(), signature, done.runtime), signature, constant_outputs(program))


def change(kind: str, size: int, how: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    """Replace the first initializer of that dtype with at least ``size`` values."""

    def damage(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype.name == kind and array.size >= size:
                tensor.CopyFrom(numpy_helper.from_array(how(array.copy()).astype(array.dtype), tensor.name))
                return
        raise AssertionError(f"no initializer of {kind}")

    return damage


def flip_largest(weights: np.ndarray) -> np.ndarray:
    flat = weights.reshape(-1)
    flat[np.abs(flat.astype(np.float64)).argmax()] *= -1
    return weights


def drop_bias(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2)
    del node.input[2]


def wrong_scale(model: onnx.ModelProto) -> None:
    """The scales of one weight, by a third."""
    names = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in names and numpy_helper.to_array(tensor).size > 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.33), tensor.name))
            return
    raise AssertionError(names)


def test_an_honest_float_artifact_passes(program: Program, tmp_path: Path) -> None:
    found = errors(program, lowered(program, tmp_path), [Inputs.of(X), Inputs.of(X[:1])])  # type: ignore[arg-type]
    demand_float(found, "the artifact")
    assert len(found) == 1 and found[0].max_relative < 1e-5


@pytest.mark.parametrize("damage", [change("float32", 100, flip_largest), drop_bias], ids=["weight", "bias"])
def test_a_damaged_float_artifact_is_caught(
    program: Program, tmp_path: Path, damage: Callable[[onnx.ModelProto], None]
) -> None:
    found = errors(program, lowered(program, tmp_path, damage), [Inputs.of(X)])  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match=r"output 0 of the artifact is off by"):
        demand_float(found, "the artifact")


def test_an_honest_int8_artifact_passes(program: Program, quantized: Program, tmp_path: Path) -> None:
    fresh = [Inputs.of(torch.randn(6, 3, 8, 8)), Inputs.of(X[:1])]
    found = errors(quantized, lowered(quantized, tmp_path), fresh)  # type: ignore[arg-type]
    demand_quantized(found, errors(program, quantized, fresh))


@pytest.mark.parametrize(
    "damage",
    [
        wrong_scale,
        drop_bias,
        change("int8", 100, lambda weights: -weights),
        change("int8", 100, lambda weights: weights[::-1]),
    ],
    ids=["scale", "bias", "signs", "channels in reverse"],
)
def test_a_damaged_int8_artifact_is_caught(
    program: Program, quantized: Program, tmp_path: Path, damage: Callable[[onnx.ModelProto], None]
) -> None:
    fresh = [Inputs.of(torch.randn(6, 3, 8, 8))]
    found = errors(quantized, lowered(quantized, tmp_path, damage), fresh)  # type: ignore[arg-type]
    with pytest.raises(VerificationError, match="INT8 artifact"):
        demand_quantized(found, errors(program, quantized, fresh))


def test_quantized_programs_are_told_from_float_ones(program: Program, quantized: Program) -> None:
    assert is_quantized(quantized) and not is_quantized(program)


# ---------------------------------------------------------------------- figures


@given(st.integers(0, 999), st.floats(1e-6, 1.0))
def test_the_figures_of_an_error_are_those_of_numpy(seed: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(3, 7, generator=generator)
    b = a + noise * torch.randn(3, 7, generator=generator)
    (found,) = errors(lambda x: a, lambda x: b, [Inputs.of(a)])
    x, y = a.double().numpy(), b.double().numpy()
    assert found.max_abs == pytest.approx(np.abs(x - y).max())
    assert found.max_relative == pytest.approx(np.abs(x - y).max() / np.abs(x).max())
    assert found.snr_db == pytest.approx(10 * math.log10((x**2).sum() / ((x - y) ** 2).sum()))
    assert found.within_a_quantum == pytest.approx((np.abs(x - y) <= np.ptp(x) / 255).mean())


def test_equal_outputs_have_no_error() -> None:
    a = torch.tensor([1.0, float("nan"), float("inf"), -2.0])
    (found,) = errors(lambda x: a, lambda x: a.clone(), [Inputs.of(a)])
    assert (found.max_abs, found.max_relative) == (0.0, 0.0)
    demand_float([found], "it")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_never_within_tolerance(bad: float) -> None:
    good, damaged = torch.ones(5), torch.ones(5)
    damaged[2] = bad
    for reference, result in ((good, damaged), (damaged, good)):
        (found,) = errors(lambda x, r=reference: r, lambda x, r=result: r, [Inputs.of(good)])
        with pytest.raises(VerificationError):
            demand_float([found], "it")
        with pytest.raises(VerificationError):
            demand_quantized([found], [found.model_copy(update={"snr_db": 30.0})])
        assert found == Error.model_validate_json(found.model_dump_json())


@pytest.mark.parametrize(
    "result",
    [torch.ones(4, 1), torch.ones(4, dtype=torch.float64), (torch.ones(4), torch.ones(4))],
    ids=["shape", "dtype", "count"],
)
def test_outputs_of_another_form_are_caught(result: object) -> None:
    with pytest.raises(VerificationError, match=r"Output 0|outputs"):
        errors(lambda x: torch.ones(4), lambda x: result, [Inputs.of(torch.ones(4))])


def test_whole_numbers_must_be_equal() -> None:
    a = torch.tensor([100_000, 3])
    (found,) = errors(lambda x: a, lambda x: a + torch.tensor([0, 1]), [Inputs.of(a)])
    with pytest.raises(VerificationError):
        demand_float([found], "it")


def test_an_output_of_zeros_must_stay_zero() -> None:
    zeros = torch.zeros(3)
    (found,) = errors(lambda x: zeros, lambda x: zeros + 0.01, [Inputs.of(zeros)])
    assert found.snr_db == -300
    with pytest.raises(VerificationError):
        demand_float([found], "it")


def test_every_output_and_batch_counts() -> None:
    x, y = torch.ones(2), torch.ones(3)
    found = errors(lambda x: (x, x), lambda x: (x, x + (x.numel() == 3)), [Inputs.of(x), Inputs.of(y)])
    assert [error.max_abs for error in found] == [0.0, 1.0]
    assert worst_snr(found) == found[1].snr_db
    assert worst_snr(found[:1]) is None


def test_an_empty_output_has_no_error() -> None:
    (found,) = errors(lambda x: torch.ones(0), lambda x: torch.ones(0), [Inputs.of(torch.ones(1))])
    demand_float([found], "it")


def test_equal_signals_have_no_ratio() -> None:
    assert snr_db(torch.ones(3), torch.ones(3)) is None
    assert snr_db(torch.ones(3), torch.tensor([1.0, 1.0, 2.0])) == pytest.approx(10 * math.log10(3))
