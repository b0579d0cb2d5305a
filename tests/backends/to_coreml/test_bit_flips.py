"""A package is read from its files: what changes there, shows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("coremltools")

from planish.backends.to_coreml.backend import FILE, CoreMLBackend
from planish.backends.to_coreml.blobs import _METADATA
from planish.backends.to_coreml.evaluator import Evaluator
from planish.backends.to_coreml.mil import MODEL, WEIGHTS
from planish.compiler.errors import UserError
from planish.compiler.plugins import registry
from tests.backends.to_coreml.packaged import program_of

SIZE = 32


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    program = program_of(nn.Linear(SIZE, SIZE, bias=False), torch.randn(3, SIZE))
    CoreMLBackend().lower(program, registry().find_profile("iphone-15"), folder)
    return folder / FILE


def outputs(path: Path) -> torch.Tensor:
    result = Evaluator(path)({"input": torch.eye(SIZE)})["output_0"]
    assert isinstance(result, torch.Tensor)
    return result


@pytest.mark.parametrize("seed", range(20))
def test_each_flipped_bit_of_a_weight_shows_in_the_outputs(package: Path, seed: int) -> None:
    weights = package / WEIGHTS / "weight.bin"
    whole = weights.read_bytes()
    _, _, size, start = _METADATA.unpack(whole[64 : 64 + _METADATA.size])
    assert size == SIZE * SIZE * 2
    expected = outputs(package)
    bit = random.Random(seed).randrange(size * 8)
    raw = bytearray(whole)
    raw[start + bit // 8] ^= 1 << (bit % 8)
    try:
        weights.write_bytes(raw)
        assert not torch.equal(outputs(package), expected)
    finally:
        weights.write_bytes(whole)


@pytest.mark.parametrize("file", [MODEL, WEIGHTS / "weight.bin"])
def test_a_file_that_is_cut_off_or_no_package_is_told(package: Path, file: Path) -> None:
    whole = (package / file).read_bytes()
    try:
        (package / file).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="Compile again"):
            outputs(package)
    finally:
        (package / file).write_bytes(whole)
