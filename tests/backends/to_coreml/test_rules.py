"""Each rewrite, decomposition and converter: PyTorch, and the naive conversion that it mends."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("coremltools")

import coremltools as ct

from planish.backends.to_coreml import recurrent_converters
from planish.backends.to_coreml.backend import FILE, CoreMLBackend
from planish.backends.to_coreml.checks import CHECKS
from planish.backends.to_coreml.convert import quiet
from planish.backends.to_coreml.converters import Refused, guarded
from planish.backends.to_coreml.evaluator import Evaluator
from planish.compiler.errors import LoweringError, VerificationError
from tests.backends.to_coreml.families import relative_error
from tests.backends.to_coreml.packaged import FLOAT32, assert_agrees, kinds, program_of
from tests.backends.to_onnx.family_base import Function


def draw(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(sum(shape)))


def naive(function: Any, *inputs: Tensor) -> list[Any]:
    """What ``coremltools.convert`` makes of an exported program, as its documentation has it, evaluated."""
    module = function if isinstance(function, nn.Module) else Function(lambda self, *args: function(*args))
    shapes = tuple({0: torch.export.Dim("batch", min=1, max=32)} for _ in inputs)
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        exported = torch.export.export(
            module.eval(), inputs, dynamic_shapes=(shapes,) if not isinstance(function, nn.Module) else shapes
        ).run_decompositions({})
        model = ct.convert(
            exported, minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )  # fmt: skip
        model.save(str(Path(scratch) / "m.mlpackage"))
        evaluator = Evaluator(Path(scratch) / "m.mlpackage")
    return [*evaluator(dict(zip(evaluator.package.inputs, inputs, strict=True))).values()]


def test_alpha_is_kept_which_coremltools_drops() -> None:
    x, y = draw(4), draw(4)
    (wrong,) = naive(lambda x, y: torch.sub(x, y, alpha=5), x, y)
    assert relative_error(torch.sub(x, y, alpha=5), wrong) > 0.1
    assert_agrees(
        lambda x, y: (
            torch.sub(x, y, alpha=5), torch.add(x, y, alpha=-2), torch.rsub(x, y, alpha=3), x.sub(2, alpha=4),
        ), x, y,
    )  # fmt: skip


def test_the_tanh_form_of_gelu_is_kept_which_coremltools_makes_exact() -> None:
    x = draw(64) * 3
    module = nn.GELU(approximate="tanh")
    (wrong,) = naive(module, x)
    assert relative_error(module(x), wrong) > 1e-5
    assert_agrees(module, x, tolerance=1e-6)


def test_a_scale_and_a_shift_get_no_epsilon() -> None:
    module = nn.BatchNorm2d(4, eps=0.0).eval()
    weight, bias = torch.rand(1, 4, 1, 1) + 0.5, torch.rand(1, 4, 1, 1)
    assert "batch_norm" not in kinds(assert_agrees(lambda x: x * weight + bias, draw(4, 5, 5), tolerance=1e-7))
    assert_agrees(module, draw(4, 5, 5))


def test_resizing_to_a_size_samples_as_pytorch_does() -> None:
    def resized(*options: dict[str, Any]) -> Any:
        return lambda x: tuple(
            F.interpolate(x, mode="bilinear", align_corners=aligned, **each)
            for aligned in (False, True)
            for each in options
        )

    x = draw(2, 7, 9)
    assert_agrees(resized({"size": (11, 5)}), x, tolerance=1e-6)
    assert_agrees(resized({"scale_factor": 2.0}, {"scale_factor": 1.3}), x)


def test_an_epsilon_of_rms_norm_does_not_grow_with_the_values() -> None:
    spiky = torch.cat([draw(15), 1e3 * torch.ones(3, 1)], 1)
    module = nn.RMSNorm(16, eps=1e-2)
    (wrong,) = naive(module, spiky)
    assert relative_error(module(spiky), wrong) > 1e-3
    assert_agrees(module, spiky)


def test_a_reciprocal_gets_no_epsilon() -> None:
    x = draw(16).abs() * 0.1 + 0.01
    (wrong,) = naive(lambda x: x.reciprocal(), x)
    assert relative_error(x.reciprocal(), wrong) > 1e-3
    assert_agrees(lambda x: x.reciprocal(), x, tolerance=1e-6)


def test_a_triangle_of_infinities_has_no_nan() -> None:
    function = lambda x: x + torch.full((4, 4), -torch.inf).triu(1)  # noqa: E731
    (wrong,) = naive(function, draw(4, 4))
    assert wrong.isnan().any()
    assert_agrees(function, draw(4, 4))


def test_a_node_called_tanh_is_not_taken_for_the_form_of_a_gelu() -> None:
    assert_agrees(lambda x: F.gelu(x.tanh(), approximate="tanh"), draw(8), tolerance=1e-6)


def test_grouped_queries_and_scales_of_attention_are_kept() -> None:
    q, k = draw(4, 5, 8), draw(2, 6, 8)
    assert_agrees(lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), q, k)
    package = assert_agrees(lambda q: F.scaled_dot_product_attention(q, q, q, scale=0.3), q)
    assert "scaled_dot_product_attention" in kinds(package)


def test_a_mask_of_the_batch_over_a_constant_makes_no_package_that_contradicts_itself() -> None:
    function = lambda x: torch.where(x[:, :1] > 0, torch.ones(1, 4), torch.zeros(1, 4))  # noqa: E731
    with pytest.raises(VerificationError, match="is declared as"):
        naive(function, draw(4))
    assert_agrees(function, draw(4))


def test_windows_of_six_dimensions_are_cut_with_five() -> None:
    def windows(x: Tensor) -> Tensor:
        cut = x.view(x.shape[0], 2, 4, 2, 4, 3).permute(0, 1, 3, 2, 4, 5)
        return cut.contiguous().view(-1, 4, 4, 3)

    def patches(x: Tensor) -> Tensor:
        return x.view(x.shape[0], 3, 4, 2, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(x.shape[0], 8, 24)

    assert_agrees(windows, draw(8, 8, 3))
    assert_agrees(patches, draw(3, 8, 8))


def test_padding_pooling_and_writing_agree() -> None:
    def written(x: Tensor) -> Tensor:
        y = x.clone()
        y[:, torch.tensor([0, 2])] = 1.5
        y[y > 1] = -1.0
        return y

    x = draw(4, 6, 7)
    assert_agrees(lambda x: (F.pad(x, (1, 2, 2, 0), mode="circular"), F.pad(x, (-1, 2)), written(x)), x)
    assert_agrees(
        lambda x: (
            F.adaptive_avg_pool2d(x, (4, 3)), F.adaptive_max_pool2d(x, (4, 3)),
            F.avg_pool2d(x, 3, 1, 1, divisor_override=5),
            F.max_pool2d(x, 3, 2, 1, ceil_mode=True), F.avg_pool2d(x, 2, ceil_mode=True),
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        ), x,
    )  # fmt: skip


def test_definitions_agree_with_their_operators() -> None:
    x = draw(4, 6)
    assert_agrees(
        lambda x: (
            x.fmod(0.7), torch.erfc(x), torch.cdist(x, x.flip(1)), x.kthvalue(2, -1).values, x.roll((1, -2), (1, 2)),
            x.diagonal(0, 1, 2), x.unfold(1, 2, 1), torch.hypot(x, x.abs()), x.trunc(), x.frac(),
            x.median(-1).values, x.prod(-1), x.argsort(-1), torch.isinf(x), x.copysign(x - 1),
        ), x,
    )  # fmt: skip
    assert_agrees(
        lambda x: (F.group_norm(x, 2), F.unfold(x[:, :, None].expand(-1, -1, 5, -1), 3, dilation=2)), draw(4, 8)
    )


def test_groups_of_a_transposed_convolution_keep_their_factors() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), norm).eval()
    scale = torch.rand(1, 6, 1, 1) + 0.5
    x = draw(4, 3, 3)
    (wrong,) = naive(model, x)
    assert relative_error(model(x), wrong) > 0.1
    assert_agrees(Function(lambda self, x: (self.model(x), self.model[0](x) * scale), model=model).eval(), x)


def test_a_number_over_a_convolution_stays_a_division() -> None:
    torch.manual_seed(0)
    weight, factors = torch.randn(4, 3, 1, 1), torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    x = draw(3, 4, 4)

    def function(x: Tensor) -> Tensor:
        return factors / F.conv2d(x, weight)

    (wrong,) = naive(function, x)
    assert relative_error(function(x), wrong) > 0.1
    assert_agrees(function, x)


def test_divisions_of_whole_numbers_stay_whole_in_float16(tmp_path: Path) -> None:
    from planish.compiler.plugins import registry

    x = torch.tensor([[100_003, -5, 2**30 + 1], [7, 2**31 - 1, -(2**31) + 1]], dtype=torch.int32)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return x // 7, x.div(-7, rounding_mode="trunc"), x % 7

    CoreMLBackend().lower(program_of(run, x), registry().find_profile("iphone-15"), tmp_path)
    got = Evaluator(tmp_path / FILE)({"inputs_0": x}).values()
    assert all(torch.equal(a, b) for a, b in zip(run(x), got, strict=True))


def test_real_ranges_are_counted_and_two_unfolds_keep_five_dimensions() -> None:
    assert_agrees(lambda x: x + torch.arange(1, 9, 2, dtype=torch.float32), draw(4))

    def windows(x: Tensor) -> Tensor:
        return x.unfold(2, 4, 2).unfold(3, 4, 2).reshape(x.shape[0], 2, 9, -1)

    assert_agrees(windows, draw(2, 8, 8))


@pytest.mark.parametrize(
    "options", [{"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": (2, 3), "dilation": (2, 1)}]
)
def test_windows_are_added_up_to_an_image(options: dict[str, Any]) -> None:
    def function(x: Tensor) -> Tensor:
        return F.fold(F.unfold(x, **options).cos(), (8, 10), **options)

    assert_agrees(function, draw(2, 8, 10))


def test_resizing_against_aliasing_is_two_products() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        forms: tuple[dict[str, Any], ...] = ({"size": (5, 20)}, {"scale_factor": (0.5, 0.7)},
                                             {"size": (4, 6), "align_corners": True})  # fmt: skip
        return tuple(F.interpolate(x, mode=mode, antialias=True, **form)
                     for mode in ("bilinear", "bicubic") for form in forms)  # fmt: skip

    assert kinds(assert_agrees(function, draw(2, 9, 13))).count("matmul") == 2 * 6


def test_an_lstm_stays_a_layer() -> None:
    package = assert_agrees(nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True), torch.randn(3, 3, 5))
    assert kinds(package).count("lstm") == 2


def test_a_gru_is_written_step_by_step_unless_it_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = (each for each in CHECKS if each.name == "long-gru-unproven-upstream")
    x, module = torch.randn(3, 3, 5), nn.GRU(5, 4, 2, bidirectional=True, batch_first=True)
    package = assert_agrees(module, x)
    assert "gru" not in kinds(package) and kinds(package).count("tanh") == 3 * 2 * 2
    assert not [*check.offenders(program_of(module, x))]
    assert_agrees(nn.GRU(5, 4, batch_first=True, bias=False), x[:, :1])
    monkeypatch.setattr(recurrent_converters, "UNROLLED", 3 * 2 * 2 - 1)
    assert kinds(assert_agrees(module, x)).count("gru") == 2 * 2
    assert len([*check.offenders(program_of(module, x))]) == 1


def test_a_keyword_that_a_converter_does_not_read_is_refused() -> None:
    exported = torch.export.export(Function(lambda self, x, y: torch.add(x, y, alpha=2)), (draw(4), draw(4)))
    exported = exported.run_decompositions({})
    with pytest.raises(Refused, match=r"would drop alpha= of aten\.add"), guarded(exported.graph), quiet():
        ct.convert(exported, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)


def test_coremltools_is_as_before_afterwards() -> None:
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    before = _TORCH_OPS_REGISTRY.name_to_func_mapping["gelu"]
    assert_agrees(nn.GELU(), draw(4))
    assert _TORCH_OPS_REGISTRY.name_to_func_mapping["gelu"] is before


def test_an_operator_without_a_converter_is_named(tmp_path: Path) -> None:
    from planish.compiler.plugins import registry

    program = program_of(lambda x: torch.linalg.det(x), draw(3, 3))
    with pytest.raises(LoweringError, match=r"Replace aten\.\w*det\w* by other operators"):
        FLOAT32.lower(program, registry().find_profile("iphone-15"), tmp_path)
