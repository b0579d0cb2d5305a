"""Each wall of import-linter stands: an import through it is reported, under the wall's own name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import copy_of_sources

LINT = "from importlinter.cli import lint_imports_command as lint; lint()"
BREACHES = {
    "passes/breach.py": {
        "import planish.backends": "Passes and backends never import each other",
        "import planish.compiler.driver": "Passes and backends never import what runs them",
        "import planish.compiler.pipeline": "Passes and backends never import what runs them",
        "import onnxruntime": "Vendor libraries are the backends' alone",
    },
    "backends/breach.py": {
        "def f():\n    import planish.passes": "Passes and backends never import each other",
        "import planish.compiler.plugins": "Passes and backends never import what runs them",
        "import planish.compiler.cli": "Passes and backends never import what runs them",
    },
    "compiler/breach.py": {
        "import planish.passes": "The compiler imports no pass and no backend: plugins finds them",
        "from planish import backends": "The compiler imports no pass and no backend: plugins finds them",
        "def f():\n    import onnx": "Vendor libraries are the backends' alone",
        "from torchao.quantization import pt2e": "Vendor libraries are the backends' alone",
    },
    "hwprofiles/breach.py": {
        "import planish.compiler.hardware": "Hardware profiles are data: they import nothing of planish",
    },
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_sources(tmp_path_factory.mktemp("tree"))


def broken_walls(tree: Path) -> set[str]:
    command = [sys.executable, "-c", LINT, "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    walls = {line.removesuffix(" BROKEN") for line in lines if line.endswith(" BROKEN")}
    assert any(line.endswith((" KEPT", " BROKEN")) for line in lines), done.stdout + done.stderr
    assert bool(walls) == bool(done.returncode)
    return walls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "statement", "wall"),
    [(file, statement, wall) for file, cases in BREACHES.items() for statement, wall in cases.items()],
)
def test_an_import_through_a_wall_is_reported(tree: Path, file: str, statement: str, wall: str) -> None:
    breach = tree / file
    breach.write_text(statement + "\n")
    try:
        assert wall in broken_walls(tree)
    finally:
        breach.unlink()


@pytest.mark.slow
def test_an_import_of_a_vendor_library_outside_its_backend_is_reported(tree: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "TID251",
        "--no-cache",
        "--output-format",
        "json",
    ]
    breach = tree / "backends/breach.py"
    breach.write_text("import onnxruntime\n")
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    finally:
        breach.unlink()
    assert {Path(found["filename"]).resolve() for found in json.loads(done.stdout)} == {breach.resolve()}
