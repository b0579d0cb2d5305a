"""The Core ML backend from compile to artifact."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

import planish
from planish.backends.to_coreml.backend import FILE, CoreMLBackend
from planish.backends.to_coreml.interface import Image
from planish.backends.to_coreml.mil import MODEL, WEIGHTS, read_package
from planish.compiler.errors import UserError, VerificationError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.trace import trace
from planish.passes.quantize_int8 import QuantizeInt8
from planish.passes.quantize_weights import QuantizeWeights
from tests.backends.to_coreml.packaged import FLOAT32, kinds, program_of
from tests.backends.to_onnx.family_base import Function


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 10), nn.Softmax(-1),
    ).eval()  # fmt: skip


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


FLOAT16_BYTES = 2 * sum(parameter.numel() for parameter in net().parameters())


def weight_bytes(result: planish.Result) -> int:
    return (result.artifact.folder / FILE / WEIGHTS / "weight.bin").stat().st_size


def compiled(tmp_path: Path, model: nn.Module | None = None, **options: Any) -> planish.Result:
    return planish.compile(model or net(), "iphone-15", IMAGES, output=tmp_path / "artifact", **options)


def test_an_iphone_gets_a_float16_package_that_is_proven_here(tmp_path: Path) -> None:
    result = compiled(tmp_path)
    assert result.report.backend == "coreml"
    assert any("not by Apple's runtime" in note for note in result.report.notes)
    assert any("Neural Engine" in note and "expectation" in note for note in result.report.notes)
    assert result.report.baseline is not None and result.report.baseline.latency is not None
    assert result.report.baseline.latency.source == "estimated"
    (error,) = result.report.errors
    assert error.snr_db is not None and 60 < error.snr_db < 90
    again = planish.load(tmp_path / "artifact")
    assert torch.equal(again.run(IMAGES), result.run(IMAGES))


def test_names_and_types_are_those_of_the_model(tmp_path: Path) -> None:
    def run(self: Any, pixels: Tensor, tokens: Tensor) -> Any:
        return {"logits": pixels.sum(1) + tokens, "token": tokens * 2, "positive": pixels > 0}

    class Named(nn.Module):
        def forward(self, pixels: Tensor, tokens: Tensor) -> Any:
            return run(self, pixels, tokens)

    inputs = (torch.randn(2, 3), torch.tensor([3, 4]))
    lowered = FLOAT32.lower(trace(Named(), Inputs(inputs)), registry().find_profile("iphone-15"), tmp_path)
    assert lowered.runtime["inputs"] == ["pixels", "tokens"]
    assert lowered.runtime["outputs"] == [["logits", "float32"], ["token", "int64"], ["positive", "bool"]]
    package = read_package(tmp_path / FILE)
    assert [feature.bounds[0] for feature in package.input_features] == [(1, 32), (1, 32)]
    assert [feature.name for feature in package.output_features] == ["logits", "token", "positive"]


def test_more_rows_than_the_package_takes_are_refused(tmp_path: Path) -> None:
    result = compiled(tmp_path, backend=CoreMLBackend(largest_batch=4))
    assert result.run(IMAGES.repeat(2, 1, 1, 1)).shape == (4, 10)
    with pytest.raises(UserError, match=r"'input' 1 to 4 rows on axis 0, not 6; CoreMLBackend\(largest_batch=…\)"):
        result.run(IMAGES.repeat(3, 1, 1, 1))


def test_int8_from_the_pass_is_exact_in_float32(tmp_path: Path) -> None:
    result = compiled(tmp_path, passes=[QuantizeInt8()], backend=FLOAT32)
    assert result.report.errors[0].snr_db is None or result.report.errors[0].snr_db > 100
    found = kinds(read_package(result.artifact.folder / FILE))
    assert "quantize" in found and "constexpr_blockwise_shift_scale" in found


@pytest.mark.parametrize(("system", "kind"), [(">=17", "affine_dequantize"), (">=18", "blockwise_shift_scale")])
def test_integer_weights_from_the_pass_lie_in_the_file_as_integers(tmp_path: Path, system: str, kind: str) -> None:
    torch.manual_seed(0)
    layers = {"table": nn.Embedding(64, 48), "conv": nn.Conv1d(48, 40, 3, padding=1), "head": nn.Linear(40, 24)}
    model = Function(lambda self, ids: self.head(self.conv(self.table(ids).mT).relu().mT), **layers).eval()
    ids = torch.randint(64, (2, 7))
    result = planish.compile(
        model, with_system(system), ids, passes=[QuantizeWeights(min_values=0)], backend=FLOAT32,
        output=tmp_path / "artifact",
    )  # fmt: skip
    assert result.report.errors[0].max_relative < 1e-6
    stored = [each.inputs for each in read_package(tmp_path / "artifact" / FILE).block.operations
              if each.type == f"constexpr_{kind}"]  # fmt: skip
    for layer, inputs in zip(layers.values(), stored, strict=True):
        weight = layer.state_dict()["weight"]
        (integers,), (scales,) = inputs["data" if "data" in inputs else "quantized_data"], inputs["scale"]
        assert isinstance(integers, Tensor) and isinstance(scales, Tensor) and integers.dtype is torch.int8
        steps = scales.reshape(-1, *[1] * (weight.ndim - 1))
        assert torch.allclose(scales.flatten(), weight.flatten(1).abs().amax(1) / 127)
        assert torch.equal(integers, torch.round(weight / steps).clamp(-127, 127).to(torch.int8))


def with_system(versions: str) -> HardwareProfile:
    profile = registry().find_profile("iphone-15")
    return profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"versions": {"ios": versions}})})


@pytest.mark.parametrize(("form", "share"), [("int8", 0.75), ("int4", 0.55), ("palette-4", 0.55)])
def test_weights_alone_get_smaller_and_the_rest_is_proven(tmp_path: Path, form: str, share: float) -> None:
    small = compiled(tmp_path, backend=CoreMLBackend(weights=form))
    assert weight_bytes(small) < share * FLOAT16_BYTES
    assert any(f"Weights as {form}: at least" in note for note in small.report.notes)


def test_a_system_that_is_too_old_is_told_with_the_one_that_is_needed(tmp_path: Path) -> None:
    old = with_system(">=16")
    with pytest.raises(UserError, match=r"Raise the oldest system of iphone-15 to iOS 18 \(macOS 15\): weights='int4'"):
        CoreMLBackend(weights="int4").lower(program_of(net(), IMAGES), old, tmp_path)
    assert CoreMLBackend().scheme(old) is None
    lowered = CoreMLBackend().lower(program_of(net(), IMAGES), old, tmp_path)
    assert lowered.versions["target"] == "iOS16" and read_package(tmp_path / FILE).specification == 7


def test_zeros_are_stored_as_a_mask(tmp_path: Path) -> None:
    model = net()
    for layer in (model[2], model[6]):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        layer.weight.data[(torch.arange(layer.weight.numel()) % 4 < 2).reshape(layer.weight.shape)] = 0
    thin = compiled(tmp_path, model)
    assert "constexpr_sparse_to_dense" in kinds(read_package(thin.artifact.folder / FILE))
    assert weight_bytes(thin) < 0.8 * FLOAT16_BYTES


def test_an_app_gives_images_and_gets_labels(tmp_path: Path) -> None:
    labels = tuple(f"class {index}" for index in range(10))
    image = Image(scale=(1 / 58, 1 / 57, 1 / 57), bias=(-2.1, -2.0, -1.8))
    backend = CoreMLBackend(images={"input": image}, labels=labels, metadata={"author": "me", "kind": "demo"})
    result = compiled(tmp_path, backend=backend)
    assert torch.allclose(result.run(IMAGES), net()(IMAGES), atol=1e-2)
    package = read_package(result.artifact.folder / FILE)
    assert package.input_features[0].kind == "imageType"
    assert {feature.kind for feature in package.output_features} == {"stringType", "dictionaryType"}


def test_a_package_tells_who_made_it_and_what_it_costs(tmp_path: Path) -> None:
    from coremltools.proto import Model_pb2

    backend = CoreMLBackend(metadata={"author": "me", "version": "1.2", "kind": "demo"})
    backend.lower(program_of(net(), IMAGES), registry().find_profile("iphone-15"), tmp_path)
    spec = Model_pb2.Model()
    spec.ParseFromString((tmp_path / FILE / MODEL).read_bytes())
    told = spec.description.metadata
    assert (told.author, told.versionString) == ("me", "1.2")
    macs = 8 * 8 * 32 * 9 * (3 + 32) + 512 * 10
    parameters = 32 * 9 * (3 + 32) + 2 * 32 + 513 * 10
    assert told.userDefined["planish.macs"] == str(macs)
    assert told.userDefined["planish.parameters"] == str(parameters)
    assert told.userDefined["kind"] == "demo"
    assert told.shortDescription.startswith(
        "Compiled by planish for iphone-15: computes in float16, weights in float16"
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: CoreMLBackend("bfloat16"),  # type: ignore[arg-type]
            "'float16' or 'float32', not 'bfloat16'",
        ),
        (lambda: CoreMLBackend(largest_batch=0), "at least 1, not 0"),
        (lambda: CoreMLBackend(labels=("a", "a")), "a label of its own"),
        (
            lambda: Image(layout="RGBA"),  # type: ignore[arg-type]
            "no 'RGBA'; did you mean 'RGB'",
        ),
        (lambda: Image(scale=(1.0, 2.0)), "Give scale one number, or 3 for RGB, not 2"),
        (lambda: Image(scale=0.0), "other than 0"),
    ],
)
def test_a_wrong_option_gets_one_sentence(make: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make()


def test_an_input_that_is_no_image_is_told(tmp_path: Path) -> None:
    profile = registry().find_profile("iphone-15")
    with pytest.raises(UserError, match="no 'inputs'; did you mean 'input'"):
        CoreMLBackend(images={"inputs": Image()}).lower(program_of(net(), IMAGES), profile, tmp_path)
    with pytest.raises(UserError, match=r"the shape \[1, 1, height, width\] to be a GRAYSCALE image"):
        CoreMLBackend(images={"input": Image(layout="GRAYSCALE")}).lower(program_of(net(), IMAGES), profile, tmp_path)


def test_a_model_beyond_float16_is_told_to_take_float32(tmp_path: Path) -> None:
    model = Function(lambda self, x: (self.layer(x) * 1e3).square(), layer=nn.Conv2d(3, 8, 3))
    with pytest.raises(UserError, match="Compile in float32: output 0 of the model leaves the range of float16"):
        compiled(tmp_path, model)
    assert compiled(tmp_path, model, backend=FLOAT32).report.errors[0].max_relative < 1e-5


def test_a_package_with_another_weight_does_not_pass_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish.backends.to_coreml import lower, package

    def damaged(path: Path, *arguments: Any) -> None:
        finish(path, *arguments)
        weights = path / WEIGHTS / "weight.bin"
        raw = bytearray(weights.read_bytes())
        raw[-64 * 4 : -64 * 2] = bytes(128)
        weights.write_bytes(raw)

    finish = package.finish
    monkeypatch.setattr(lower, "finish", damaged)
    with pytest.raises(VerificationError, match="rounding to float16 allows"):
        compiled(tmp_path)
    assert not (tmp_path / "artifact").exists()


def test_the_same_program_gives_the_same_bytes_and_no_copies_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, profile = program_of(net(), IMAGES), registry().find_profile("iphone-15")
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    monkeypatch.setenv("TMPDIR", str(copies))
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lowered = CoreMLBackend().lower(program, profile, tmp_path / name)
        digests.append([hashlib.sha256((tmp_path / name / file).read_bytes()).digest() for file in lowered.files])
    assert digests[0] == digests[1]
    assert not [*copies.rglob("*.mlpackage")]
    assert str(MODEL) in str(lowered.files)


def test_two_threads_may_lower_at_once(tmp_path: Path) -> None:
    profile, sizes = registry().find_profile("iphone-15"), {}
    programs = {n: program_of(nn.Sequential(nn.Linear(8, n), nn.GELU()), torch.randn(3, 8)) for n in (4, 6)}

    def lower(width: int) -> None:
        (tmp_path / str(width)).mkdir()
        sizes[width] = FLOAT32.lower(programs[width], profile, tmp_path / str(width)).runtime["outputs"]

    threads = [threading.Thread(target=lower, args=(width,)) for width in (4, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for width in (4, 6):
        (block,) = [read_package(tmp_path / str(width) / FILE).block]
        assert block.operations[-1].outputs[0][1].shape == (None, width)
    assert sizes.keys() == {4, 6}
