"""The wheel holds the tree, and importing planish costs nothing that it does not need."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, SOURCE_FOLDERS, copy_of_sources

VENDORS = (
    "ai_edge_litert",
    "coremltools",
    "litert_torch",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "torchao",
)
EXTRA_OF_ROOM = {
    "to_coreml": "coreml",
    "to_tflite": "tflite",
    "to_tensorrt": "tensorrt",
    "pruning": "plot",
    "sparsity": "plot",
}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def source_files() -> Iterator[Path]:
    """What belongs into the wheel, relative to the root."""
    yield from (Path("planish/__init__.py"), Path("planish/py.typed"))
    for folder in SOURCE_FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(ROOT)


def in_wheel(path: Path) -> str:
    return path.as_posix() if path.parts[0] == "planish" else f"planish/{path.as_posix()}"


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_files_of_the_tree_and_no_others(tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # setuptools leaves build/ and *.egg-info beside what it builds
    tree.mkdir()
    copy_of_sources(tree)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    (wheel,) = tmp_path.glob("planish-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {in_wheel(path) for path in source_files()}


def test_every_folder_with_python_files_is_a_package_of_the_wheel(pyproject: dict[str, Any]) -> None:
    folders = {path.parent for path in source_files() if path.suffix == ".py"}
    names = {in_wheel(folder).replace("/", ".") for folder in folders}
    assert names == set(pyproject["tool"]["setuptools"]["packages"])


def test_the_links_of_the_import_package_lead_to_the_source_folders() -> None:
    for folder in SOURCE_FOLDERS:
        assert (ROOT / "planish" / folder).resolve() == ROOT / folder


def test_importing_planish_loads_no_vendor_library_and_no_command_line() -> None:
    watched = [*VENDORS, "typer"]
    code = f"import json, sys, planish; print(json.dumps([m for m in {watched} if m in sys.modules]))"
    assert json.loads(run_python(code)) == []


def test_planish_imports_where_no_vendor_library_is_installed() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({VENDORS}))"  # None there: ImportError
    assert run_python(f"{blocked}; import planish; print('imported')") == "imported\n"


def test_every_imported_library_is_a_declared_dependency(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    core = distributions(project["dependencies"])
    installed_as = packages_distributions()
    for path in source_files():
        if path.suffix != ".py" or "on_device" in path.parts:  # for those, see test_on_device.py
            continue
        extra = next((EXTRA_OF_ROOM[part] for part in path.parts if part in EXTRA_OF_ROOM), None)
        declared = core | distributions(project["optional-dependencies"][extra] if extra else [])
        for library in imported_libraries(ROOT / path):
            names = {normalized(name) for name in (library, *installed_as.get(library, ()))}
            assert names & declared, f"{path} imports {library}: declare it in pyproject.toml"


def imported_libraries(path: Path) -> set[str]:
    """Top-level names of all third-party imports, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"planish"}


def distributions(requirements: list[str]) -> set[str]:
    return {normalized(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in requirements}


def normalized(name: str) -> str:
    """https://packaging.python.org/en/latest/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", name).lower()
