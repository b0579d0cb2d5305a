from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from planish.backends.to_tensorrt import build_folder
from planish.backends.to_tensorrt.sparsity import has_two_four_weights
from planish.compiler.targets import find_profile
from tests.backends.to_tensorrt.cases import LAYERS
from tests.backends.to_tensorrt.device import build_files, profile
from tests.backends.to_tensorrt.graphs import Graph

NVIDIA = [
    "jetson-agx-orin-64", "jetson-agx-orin-32", "jetson-orin-nx-16", "jetson-orin-nx-8", "jetson-orin-nano-8",
    "jetson-agx-xavier", "jetson-xavier-nx", "t4", "a10", "l4", "a100", "h100", "h200", "rtx-4090",
]  # fmt: skip


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "build.json").read_text())
    return found


@pytest.mark.parametrize("target", NVIDIA)
def test_every_target_of_tensorrt_gets_scripts_for_its_versions(target: str, tmp_path: Path) -> None:
    graph = Graph(opset=17)
    onnx.save(graph.proto(graph.op("Relu", graph.input(2, 4))), tmp_path / "model.onnx")
    found = find_profile(target)
    names = build_folder.write(tmp_path, found, None)
    assert {"build.py", "build.sh", "build.json", "README.md"} <= set(names)
    assert told(tmp_path)["versions"] == found.runtime.versions and told(tmp_path)["target"] == target
    options = (tmp_path / "build.sh").read_text()
    assert ("--fp16" in options) == ("fp16" in found.support.dtypes) and "--int8" not in options


def test_samples_are_one_row_and_the_engine_takes_up_to_eight(tmp_path: Path) -> None:
    folder = build_files(tmp_path / "artifact", profile())
    image, words = told(folder)["inputs"]
    assert image["shape"] == [1, 16, 8, 8] and (image["least"][0], image["most"][0]) == (1, 8)
    assert (folder / image["file"]).stat().st_size == 16 * 8 * 8 * 4
    assert words["dtype"] == "int64" and words["shape"] == [1, 5]
    assert "--optShapes=image:1x16x8x8,words:1x5" in (folder / "build.sh").read_text()


def test_whole_numbers_are_int32_for_tensorrt_8(tmp_path: Path) -> None:
    folder = build_files(tmp_path / "artifact", profile("jetson-agx-xavier"))
    words = told(folder)["inputs"][1]
    assert words["dtype"] == "int32" and (folder / words["file"]).stat().st_size == 5 * 4


def test_expected_outputs_are_those_of_the_file(tmp_path: Path) -> None:
    graph = Graph()
    onnx.save(graph.proto(graph.op("Neg", graph.input(2, 3))), tmp_path / "model.onnx")
    build_folder.write(tmp_path, find_profile("t4"), None)
    read = [
        struct.unpack("<6f", (tmp_path / name).read_bytes()) for name in ("sample_input_0.bin", "expected_output_0.bin")
    ]
    assert read[1] == tuple(-value for value in read[0]) and any(read[0])


@pytest.mark.parametrize(("version", "flags"), [(">=10.3,<11", True), (">=11.4,<12", False)])
def test_flags_of_precision_are_given_before_version_11_alone(version: str, flags: bool, tmp_path: Path) -> None:
    options = (build_files(tmp_path / "artifact", profile(tensorrt=version)) / "build.sh").read_text()
    assert ("--int8" in options, "--fp16" in options) == (flags, flags)


def two_four(*shape: int, axis: int) -> np.ndarray:
    weight = np.moveaxis(np.ones(shape, np.float32), axis, -1).copy()
    weight.reshape(-1)[np.arange(weight.size) % 4 < 2] = 0
    return np.moveaxis(weight, -1, axis)


@pytest.mark.parametrize("sparse", [True, False])
def test_two_four_weights_are_built_with_sparsity(sparse: bool, tmp_path: Path) -> None:
    graph = Graph()
    weight = two_four(16, 16, 3, 3, axis=1) if sparse else np.ones((16, 16, 3, 3), np.float32)
    onnx.save(graph.proto(graph.op("Conv", graph.input(1, 16, 8, 8), graph.constant(weight))), tmp_path / "model.onnx")
    build_folder.write(tmp_path, find_profile("jetson-orin"), None)
    assert told(tmp_path)["precision"]["sparse"] is sparse
    assert ("--sparsity=enable" in (tmp_path / "build.sh").read_text()) is sparse
    build_folder.write(tmp_path, find_profile("t4"), None)  # it has no such units
    assert told(tmp_path)["precision"]["sparse"] is False


def test_two_four_is_seen_behind_quantization_and_along_the_inputs_of_a_matmul() -> None:
    graph = Graph()
    weight = graph.quantized(graph.constant(two_four(32, 8, axis=0)), [0.1] * 8, axis=1)
    assert has_two_four_weights(graph.model(graph.op("MatMul", graph.quantized(graph.input(4, 32)), weight)))
    dense = Graph()
    assert not has_two_four_weights(dense.model(LAYERS["gemm"](dense)))
