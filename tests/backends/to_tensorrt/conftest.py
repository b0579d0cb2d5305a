from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.to_tensorrt.device import Device, build_files, compile_cuda, device, profile


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cuda")
    compile_cuda(place)
    return place / "libcudart.so"


@pytest.fixture(scope="session")
def orin_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_files(tmp_path_factory.mktemp("orin") / "artifact", profile())


@pytest.fixture
def orin(tmp_path: Path, cuda: Path, orin_files: Path) -> Device:
    return device(tmp_path, cuda, orin_files)
