"""The scripts that build on the device, with stand-ins that have the API of each TensorRT and its refusals."""

from __future__ import annotations

import ast
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from planish.backends.to_tensorrt.build_folder import SCRIPTS
from planish.compiler import build_folder
from tests.backends.to_tensorrt.device import Device, build_files, device, profile, report

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in for CUDA is compiled with gcc")
SHARED = [build_folder.SCRIPTS / name for name in ("machine.py", "samples.py")]
API = json.loads(Path(__file__).with_name("api.json").read_text())


def test_it_builds_verifies_measures_and_reports(orin: Device) -> None:
    ran = orin.build()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = report(orin)
    assert told["target"] == "jetson-agx-orin-64" and told["built_by"] == "Python API"
    assert told["device"]["device"] == orin.model and told["device"]["jetpack"] == "6.1+b123"
    assert told["device"]["power mode"] == "MAXN" and told["device"]["tensorrt"] == "10.3.0"
    assert [output["name"] for output in told["outputs"]] == ["output_0", "output_1"]
    assert all(output["snr_db"] is None or output["snr_db"] > 100 for output in told["outputs"])
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p95"] <= told["latency_ms"]["p99"]
    assert told["runs"] >= 100 and told["batch"] == 1
    assert {each["nodes"] for each in told["layers"]} == {"conv2d, relu", "linear.1, relu"}
    assert all(each["inputs"].endswith("Int8") for each in told["layers"])
    assert told["engine_bytes"] == (orin.folder / "model.engine").stat().st_size


VERSIONS = {
    "8.6.1": (">=8.5,<8.7", "jetson-agx-xavier", "8.6.1"),
    "10.3.0": (">=10.3,<11", "t4", "10.3.0"),
    "10.16.0": (">=10.16,<11", "jetson-orin", "10.16.0.72"),
    "11.4.0": (">=11.4,<12", "jetson-orin", "11.4.0.106"),
}
"""Version -> range of the profile, target, and the wheel whose names the stand-in has."""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("script", ["build.py", "build.sh"])
def test_it_works_with_the_api_and_the_options_of_each_version(
    version: str, script: str, tmp_path: Path, cuda: Path
) -> None:
    allowed, target, wheel = VERSIONS[version]
    of = device(tmp_path, cuda, build_files(tmp_path / "files", profile(target, tensorrt=allowed)))
    of.environment = {"FAKE_TENSORRT": version, "FAKE_API": wheel}
    if target == "t4":
        of.model, of.release, of.environment["FAKE_GPU"] = "", "", "Tesla T4"
    if target == "jetson-agx-xavier":
        of.model, of.memory_kb = "NVIDIA Jetson AGX Xavier Developer Kit", 31_900_000
    ran = of.build() if script == "build.py" else of.run("sh", "build.sh")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert all(output["snr_db"] is None or output["snr_db"] > 100 for output in report(of)["outputs"])


def test_trtexecs_own_times_are_reported(orin: Device) -> None:
    ran = orin.run("sh", "build.sh")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = report(orin)
    assert told["built_by"] == "trtexec" and told["latency_ms"] == {"p50": 1.05, "p95": 1.095, "p99": 1.099}


def test_a_second_build_uses_the_timing_cache_and_a_damaged_one_is_started_anew(orin: Device) -> None:
    assert orin.build().returncode == 0
    (cache,) = orin.folder.glob("timing-*.cache")
    assert cache.name == "timing-nvidia-jetson-agx-orin-developer-kit-10.3.0.cache"
    orin.environment["FAKE_MISHAP"] = "cache"
    assert orin.build().returncode == 0


def test_checking_builds_nothing(orin: Device) -> None:
    assert orin.build("--check").returncode == 0
    assert not (orin.folder / "model.engine").exists() and not (orin.folder / "device_report.json").exists()


def test_jetson_linux_tells_the_jetpack_where_its_package_is_missing(orin: Device) -> None:
    del orin.environment["FAKE_JETPACK"]
    assert orin.build().returncode == 0
    assert report(orin)["device"]["jetpack"] == "6.1"


# ---------------------------------------------------------------------- the scripts themselves


def test_the_scripts_are_python_3_8_of_the_standard_library_and_tensorrt() -> None:
    allowed = {*sys.stdlib_module_names, "tensorrt", "machine", "samples", "cuda", "engine"}
    for script in (*SHARED, *SCRIPTS.glob("*.py")):
        tree = ast.parse(script.read_text(), feature_version=(3, 8))
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed
            newer = ("removeprefix", "removesuffix", "file_digest", "is_relative_to")
            assert not (isinstance(node, ast.Attribute) and node.attr in newer)


def test_the_names_that_are_used_exist_in_every_version_that_runs_that_line() -> None:
    """Branches on MAJOR aside: FP16 and INT8 are flags before 11, EXPLICIT_BATCH is one before 10."""
    only_before = {("BuilderFlag", "FP16"): 11, ("BuilderFlag", "INT8"): 11,
                   ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"): 10}  # fmt: skip
    used = {
        (node.value.attr, node.attr)
        for node in ast.walk(ast.parse((SCRIPTS / "engine.py").read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute)
        and isinstance(node.value.value, ast.Name) and node.value.value.id == "trt" and node.value.attr in API["10.3.0"]
    }  # fmt: skip
    assert ("BuilderFlag", "SPARSE_WEIGHTS") in used and ("TensorIOMode", "INPUT") in used
    for version, known in API.items():
        for owner, name in used:
            if int(version.split(".")[0]) < only_before.get((owner, name), math.inf):
                assert name in known[owner], f"{owner}.{name} in {version}"


def test_every_method_and_property_that_is_used_exists_in_every_version() -> None:
    tree = ast.parse((SCRIPTS / "engine.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = {version: {name for members in known.values() for name in members} for version, known in API.items()}
    ours = used & set().union(*names.values()) - {"FP16", "INT8", "EXPLICIT_BATCH"}  # asked for by MAJOR, as above
    assert {"set_input_shape", "execute_async_v3", "get_engine_information", "set_timing_cache"} <= ours
    assert {version: sorted(ours - known) for version, known in names.items()} == {version: [] for version in names}


@pytest.mark.slow
def test_the_scripts_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for script in (*SHARED, *SCRIPTS.glob("*.py")):
        shutil.copy(script, tmp_path)
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n[mypy-tensorrt]\nignore_missing_imports = true\n")
    ran = subprocess.run([sys.executable, "-m", "mypy", "."], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize(
    ("version", "allowed", "fits"),
    [("10.3.0", ">=10.3,<10.4", True), ("10.3.0.26-1+cuda12.5", ">=10.3,<10.4", True),
     ("10.4.0", ">=10.3,<10.4", False), ("10.16.0.72", ">=10.3,<11", True), ("8.5.2.2", ">=8.5,<8.6", True),
     ("8.10.1", ">=8.5,<8.6", False), ("6.1+b123", ">=6.1,<6.3", True), ("6.2.1+b38", ">=6.1,<6.3", True),
     ("6.3", "~=6.1", True), ("7.0", "~=6.1", False), ("10.3.1", "==10.3", True), ("10.3", ">10.3", False),
     ("10.3", "<=10.3", True)],
)  # fmt: skip
def test_versions_are_compared_number_by_number(
    version: str, allowed: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(build_folder.SCRIPTS))
    import machine  # type: ignore[import-not-found]

    assert machine.within(version, allowed) == fits
