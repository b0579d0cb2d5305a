"""The example plugin as its users have it: installed with pip, and found by planish; and the docs."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent
ROOT = EXAMPLE.parents[1]
DOCS = (ROOT / "docs" / "plugins.md").read_text()


def run_python(code: str, *arguments: object, path: tuple[Path, ...]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the example plugin."""
    folder = tmp_path_factory.mktemp("installed")
    sources = folder / "sources"  # a copy: the build leaves its own folders beside them
    shutil.copytree(EXAMPLE, sources, ignore=shutil.ignore_patterns("__pycache__"))
    target = folder / "target"
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        target,
    ]
    command = [sys.executable, "-m", "pip", "install", *options, sources]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def test_the_installed_example_is_found_through_its_entry_point(installed: Path) -> None:
    code = """
import json
from planish.compiler.plugins import registry
found = registry()
board = found.find_profile("example")
assert found.find_backend(board.backend).cannot_time(board.model_copy(update={"host": None}))
kinds = {"pass": "round-weights", "backend": "torch-archive", "profile": "example-board"}
owners = {kind: found.owners[kind][name] for kind, name in kinds.items()}
print(json.dumps([owners, board.name, found.find_pass("round-weights").__module__]))
"""
    owners, name, module = json.loads(run_python(code, path=(installed, ROOT)))
    assert owners == {"pass": "example", "backend": "example", "profile": "example"}
    assert (name, module) == ("example-board", "planish_example.round_weights")


def test_the_installed_example_is_used_through_planish_compile(installed: Path, tmp_path: Path) -> None:
    """Depends on the driver: planish.compile and planish.load."""
    code = """
import copy, json, sys
import torch, planish
from planish_example.round_weights import RoundWeights
model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)).eval()
x = torch.randn(3, 64)
rounded = copy.deepcopy(model)
with torch.no_grad():
    for layer in (rounded[0], rounded[2]):
        layer.weight.copy_(layer.weight.bfloat16())
result = planish.compile(
    model, target="example", example_inputs=x, passes=[RoundWeights(mantissa_bits=7)], output=sys.argv[1]
)
errors = [(run(x) - rounded(x)).abs().max().item() for run in (result.run, planish.load(sys.argv[1]).run)]
assert (model(x) - rounded(x)).abs().max() > 1e-4
print(json.dumps([errors, json.loads(result.report.model_dump_json())]))
"""
    errors, report = json.loads(run_python(code, tmp_path / "artifact", path=(installed, ROOT)).splitlines()[-1])
    assert max(errors) < 1e-6
    assert (report["target"], report["backend"]) == ("example-board", "torch-archive")
    (step,) = [step for step in report["steps"] if step["compression"] == "round-weights"]
    assert step["options"] == {"mantissa_bits": 7}
    assert step["outcome"] in ("kept", "kept on request")  # whether it pays, the clock of this machine says
    assert [decision["outcome"] for decision in step["decisions"]] == ["rounded", "rounded"]
    assert (tmp_path / "artifact" / "program.zip").is_file()


# ---------------------------------------------------------------------- docs


def examples(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOCS, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("hook", ["planish_passes", "planish_backends", "planish_profiles"])
def test_the_docs_have_one_example_a_hook_that_runs_and_finds_what_it_adds(
    hook: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = [code for code in examples("python") if f"def {hook}" in code]
    script = tmp_path / "example.py"
    script.write_text(example)
    runpy.run_path(str(script), run_name="__main__")
    expected = {
        "passes": "DropSmallWeights(threshold=0.01)",
        "backends": "operator-list",
        "profiles": "My board",
    }
    assert expected[hook.removeprefix("planish_")] in capsys.readouterr().out


def test_the_example_of_the_docs_that_uses_the_installed_package_runs(installed: Path) -> None:
    """Depends on the driver: planish.compile."""
    (example,) = examples("python installed")
    assert "round-weights" in run_python(example, path=(installed, ROOT))
