from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import planish
from planish.compiler.artifact import MANIFEST, new_folder
from planish.compiler.errors import UserError
from planish.compiler.inputs import Inputs
from tests.compiler.models import Several
from tests.conftest import ROOT

TARGET = "x86-avx512-vnni"
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 2)).eval()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "net"
    planish.compile(model(), TARGET, X, passes=[], output=folder)
    return folder


@pytest.fixture
def copied(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "copy"))


def edit(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def test_a_copied_artifact_computes_what_the_model_computes(copied: Path) -> None:
    loaded = planish.load(copied)
    for rows in (1, 3, 7):
        x = torch.randn(rows, 6)
        with torch.no_grad():
            torch.testing.assert_close(loaded.run(x), model()(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(loaded(X), loaded.run(X))


def test_the_manifest_says_what_it_is(compiled: Path) -> None:
    manifest = planish.load(str(compiled)).manifest
    assert (manifest.model, manifest.backend, manifest.seed) == ("Sequential", "onnx", 0)
    assert manifest.profile.name == TARGET and manifest.plan == []
    assert {"planish", "torch", "onnxruntime"} <= manifest.versions.keys()
    assert {path.name for path in compiled.iterdir()} == {"model.onnx", MANIFEST, "report.json"}
    assert planish.load(compiled).size_bytes == (compiled / "model.onnx").stat().st_size


@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_flipped_byte_is_refused_with_the_name_of_the_file(copied: Path, place: float) -> None:
    content = bytearray((copied / "model.onnx").read_bytes())
    content[int(place * len(content)) if place >= 0 else -1] ^= 1
    (copied / "model.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.onnx is damaged"):
        planish.load(copied)


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"model\.onnx is missing"):
        planish.load(copied)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', b"\xff\xfe"], ids=str)
def test_a_damaged_manifest_is_named(copied: Path, content: str | bytes) -> None:
    (copied / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        planish.load(copied)


def test_a_manifest_of_a_later_format_is_refused(copied: Path) -> None:
    edit(copied, format=99)
    with pytest.raises(UserError, match=r"format|later|newer|damaged"):
        planish.load(copied)


@pytest.mark.parametrize("part", [{}, {"parameters": [], "inputs": 3}, {"parameters": ["x"], "inputs": None}])
def test_a_manifest_with_a_broken_signature_is_refused_by_name(copied: Path, part: dict[str, object]) -> None:
    edit(copied, signature=part)
    with pytest.raises(UserError, match="manifest"):
        planish.load(copied).run(X)


def test_a_folder_without_a_manifest_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"{folder.name}.*holds no manifest.json"):
            planish.load(folder)


def test_a_file_instead_of_a_folder_is_told(compiled: Path) -> None:
    with pytest.raises(UserError, match=r"model\.onnx"):
        planish.load(compiled / "model.onnx")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/../../secret"])
def test_a_manifest_that_names_a_file_outside_of_its_folder_is_refused(copied: Path, name: str) -> None:
    (copied.parent / "secret").write_text("secret")
    edit(copied, files={name: {"sha256": "0" * 64, "size_bytes": 6}})
    with pytest.raises(UserError, match=r"Refused: .*outside"):
        planish.load(copied)


def test_a_link_out_of_the_folder_is_refused(copied: Path) -> None:
    (copied / "model.onnx").replace(copied.parent / "elsewhere.onnx")
    (copied / "model.onnx").symlink_to(copied.parent / "elsewhere.onnx")
    with pytest.raises(UserError, match="Refused"):
        planish.load(copied)


def test_an_unknown_backend_is_told(copied: Path) -> None:
    edit(copied, backend="onyx")
    with pytest.raises(UserError, match=r"'onyx'.*'onnx'"):
        planish.load(copied)


def test_nested_inputs_and_outputs_come_back_in_their_structure(tmp_path: Path) -> None:
    pair, mask = (torch.randn(2, 4), torch.randn(2, 4)), torch.ones(2, 3)
    net = Several().eval()
    planish.compile(net, TARGET, Inputs((pair,), {"mask": mask}), passes=[], output=tmp_path / "net")
    got = planish.load(tmp_path / "net").run(pair, mask=mask)
    with torch.no_grad():
        torch.testing.assert_close(got, net(pair, mask=mask))
    with pytest.raises(UserError, match="mask"):
        planish.load(tmp_path / "net").run(pair)


# ---------------------------------------------------------------------- folders


def test_an_earlier_artifact_is_replaced_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "net"
    planish.compile(model(), TARGET, X, passes=[], output=output, seed=1)
    planish.compile(model(), TARGET, X, passes=[], output=output, seed=2)
    assert planish.load(output).manifest.seed == 2
    assert [path.name for path in output.parent.iterdir()] == ["net"]


def test_an_earlier_artifact_stays_where_a_compilation_fails(tmp_path: Path) -> None:
    output = tmp_path / "net"
    output.mkdir()
    (output / MANIFEST).write_text("earlier")
    with pytest.raises(RuntimeError), new_folder(output) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert (output / MANIFEST).read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_an_output_on_another_file_system_works() -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == Path("/tmp").stat().st_dev:
        pytest.skip("needs a second file system")
    folder = other / f"planish-test-{os.getpid()}"
    try:
        planish.compile(model(), TARGET, X, passes=[], output=folder / "net")
        assert planish.load(folder / "net").run(X).shape == (3, 2)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_that_is_something_else_is_left_alone(kind: str, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    if kind == "file":
        output.write_text("mine")
    else:
        output.mkdir()
        (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine exists and is no artifact"):
        planish.compile(model(), TARGET, X, passes=[], output=output)
    kept = output if kind == "file" else output / "notes.txt"
    assert kept.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_parent_that_is_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        planish.compile(model(), TARGET, X, passes=[], output=tmp_path / "file" / "net")


def test_a_read_only_parent_is_a_user_error(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(0o555)
    if os.access(parent, os.W_OK):
        parent = Path("/proc")  # root may write everywhere but there
        if not parent.is_dir():
            pytest.skip("needs a folder that this user cannot write")
    with pytest.raises(UserError, match="rights"):
        planish.compile(model(), TARGET, X, passes=[], output=parent / "planish")


def test_an_output_that_is_a_link_to_an_artifact_is_replaced(compiled: Path, tmp_path: Path) -> None:
    shutil.copytree(compiled, tmp_path / "first")
    (tmp_path / "latest").symlink_to(tmp_path / "first")
    planish.compile(model(), TARGET, X, passes=[], output=tmp_path / "latest", seed=5)
    assert planish.load(tmp_path / "latest").manifest.seed == 5
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_killed_process_leaves_the_earlier_artifact_and_no_half_of_a_new_one(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal, sys
        import torch, planish
        from planish.compiler import artifact
        model = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)).eval()
        x = torch.randn(3, 6)
        write = artifact.write_manifest
        def killed(folder, manifest):  # the model's file is written, the manifest is not
            assert (folder / "model.onnx").exists()
            os.kill(os.getpid(), signal.SIGKILL)
        def compile(output):
            planish.compile(model, {TARGET!r}, x, passes=[], output=output)
        compile(sys.argv[1] + "/net")
        artifact.write_manifest = killed
        compile(sys.argv[1] + "/" + sys.argv[2])
    """)
    for name in ("net", "new"):
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path), name], cwd=ROOT, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert planish.load(tmp_path / "net").run(X).shape == (3, 2)
        assert not (tmp_path / "new").exists()
        planish.compile(model(), TARGET, X, passes=[], output=tmp_path / "net")  # what lies beside it does no harm
