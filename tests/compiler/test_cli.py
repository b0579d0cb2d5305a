from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planish.compiler.cli import app
from planish.compiler.cli_command import EXIT_CODES, Answer, command
from planish.compiler.errors import (
    LoweringError,
    MissingDependency,
    PassError,
    PluginError,
    UserError,
    VerificationError,
)
from planish.compiler.plugins import registry
from tests.compiler.command_line import planish_says, refusal

ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------------- lists


def test_targets_lists_every_profile_with_its_rates(user_folder: Path) -> None:
    out, _ = planish_says("targets")
    profiles = registry().profiles
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert profiles.keys() <= rows.keys()
    for name, profile in profiles.items():
        assert profile.title in rows[name] and profile.backend in rows[name]
        assert set(profile.aliases) <= rows.keys()
    assert [entry["name"] for entry in json.loads(planish_says("targets", "--json")[0])] == [*profiles]


def test_a_target_is_shown_with_every_source_and_every_estimate_marked(user_folder: Path) -> None:
    profile = registry().find_profile("jetson-orin")
    out, _ = planish_says("targets", "jetson-orin")
    assert [url for url in profile.sources.values() if url not in out] == []
    shown = profile.model_dump_json()
    assert out.count("estimated") == shown.count('"estimated":true')
    assert "did you mean 'jetson-orin'" in refusal("targets", "jetson-orn")


def test_passes_are_listed_with_options_defaults_and_summary(user_folder: Path) -> None:
    rows = {row["name"]: row for row in json.loads(planish_says("passes", "--json")[0])}
    assert rows.keys() == registry().passes.keys()
    for name, kind in registry().passes.items():
        assert (
            kind.from_options({key: value for key, value in rows[name]["options"].items() if value is not None})
            == kind()
        )
        words = {*rows[name]["summary"].split()}
        assert words and words <= {*planish_says("passes")[0].split()}


def test_backends_are_listed_with_whether_they_run_here(user_folder: Path) -> None:
    rows = {row["name"]: row for row in json.loads(planish_says("backends", "--json")[0])}
    assert rows.keys() == registry().backends.keys()
    assert rows["onnx"]["cannot_be_run_here"] is None  # onnxruntime comes with planish
    assert "onnx" in planish_says("backends")[0]


# ---------------------------------------------------------------------- all commands


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (UserError("Do this."), 2),
        (OSError(28, "No space left on device"), 2),
        (MissingDependency("runtime", "extra"), 3),
        (PluginError("Mend it."), 4),
        (PassError("It failed.", component="a-pass"), 5),
        (LoweringError("It failed.", component="a-backend"), 5),
        (VerificationError("Report this."), 6),
        (ZeroDivisionError("division by zero"), 7),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_one_sentence(
    failure: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> Answer:
        raise failure

    result = exit_code(command(fails), as_json=True, debug=False)
    told = capsys.readouterr()
    assert (result, told.out) == (code, "")
    assert len(told.err.strip().splitlines()) == 1 and "Traceback" not in told.err
    assert str(failure) in told.err
    exit_code(command(fails), as_json=True, debug=True)
    assert "Traceback" in capsys.readouterr().err


def exit_code(run: Callable[..., None], **options: Any) -> int:
    import typer

    with pytest.raises(typer.Exit) as caught:
        run(**options)
    return int(caught.value.exit_code)


def test_help_and_docs_name_every_exit_code_and_command(user_folder: Path) -> None:
    told = " ".join(planish_says("--help")[0].split())
    docs = (ROOT / "docs" / "cli.md").read_text()
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in told
        assert f"| {code} | {meaning} |" in docs
    for registered in app.registered_commands:
        assert registered.callback is not None
        assert f"| `planish {registered.callback.__name__.replace('_', '-')}" in docs


def test_importing_the_commands_loads_neither_torch_nor_the_driver() -> None:
    code = """
import sys, types
package = types.ModuleType("planish")  # without the imports of its public API
package.__path__ = [sys.argv[1]]
sys.modules["planish"] = package
import planish.compiler.cli
print([name for name in ("torch", "numpy", "pydantic", "planish.compiler.driver") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "planish")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
