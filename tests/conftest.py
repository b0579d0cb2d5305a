"""What several tests share: deterministic torch, and the data and libraries that may be missing."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import sys
from pathlib import Path
from types import ModuleType

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("compiler", "passes", "backends", "hwprofiles")
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2


def pytest_configure() -> None:
    torch.set_num_threads(THREADS)
    # The same examples in every run, and no time limit on them: the machine is shared, and CI must not guess.
    # A slow machine is no reason to fail.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "planish", max_examples=40, derandomize=True, deadline=None, suppress_health_check=slow
    )
    hypothesis.settings.load_profile("planish")


@pytest.fixture(autouse=True)
def same_random_numbers_in_any_order() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with real models and data."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs real models and data in {folder}")
    return folder


@pytest.fixture(scope="session")
def zoo(shared: Path) -> ModuleType:
    """Real models with real weights: ``zoo.REAL``, ``zoo.load_real(name)``."""
    pytest.importorskip("PIL", reason="the zoo reads its images with pillow")
    path = shared / "data" / "zoo.py"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """timm, imported so that it works beside the CPU build of torch."""
    prepare_timm()
    module: ModuleType = pytest.importorskip("timm")
    return module


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """transformers, imported so that it works beside the CPU build of torch."""
    prepare_timm()
    module: ModuleType = pytest.importorskip("transformers")
    return module


def prepare_timm() -> None:
    """Let timm and transformers import where a CUDA torchvision lies beside a CPU torch."""
    from benchmarks.models import tolerate_mismatched_torchvision

    tolerate_mismatched_torchvision()


def copy_of_sources(folder: Path) -> Path:
    """What the wheel is built from, copied into ``folder``, links as links."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("planish", *SOURCE_FOLDERS):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    return folder
