"""What goes wrong on devices: one sentence each, and nothing half-built that looks whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from planish.backends.to_tensorrt.build_folder import SCRIPTS
from planish.compiler import build_folder
from tests.backends.to_tensorrt.device import Device, build_files, device, profile, refusal, report

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in for CUDA is compiled with gcc")


def test_another_jetson_is_told_by_its_name(orin: Device) -> None:
    orin.model = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    told = refusal(orin.build())
    assert "This is NVIDIA Jetson Orin NX" in told and "compiled for NVIDIA Jetson AGX Orin 64 GB" in told
    assert orin.build("--other-device").returncode == 0


def test_a_module_with_less_memory_is_another_device(orin: Device) -> None:
    orin.memory_kb = 31_000_000
    assert "has 30273 MB of memory" in refusal(orin.build())


def test_a_machine_without_a_gpu_is_told(orin: Device) -> None:
    orin.model, orin.release, orin.tools = "", "", set()
    assert "no NVIDIA GPU" in refusal(orin.build())


def test_a_name_that_only_begins_alike_is_another_gpu(tmp_path: Path, cuda: Path) -> None:
    of = device(tmp_path, cuda, build_files(tmp_path / "files", profile("l4")))
    of.model, of.release, of.environment["FAKE_GPU"] = "", "", "NVIDIA L40S"
    assert "This is NVIDIA L40S" in refusal(of.build())


def test_another_version_of_tensorrt_is_told_with_the_range(orin: Device) -> None:
    orin.environment |= {"FAKE_TENSORRT": "8.6.1"}
    assert "TensorRT is 8.6.1; the model was compiled for >=10.3,<10.4" in refusal(orin.build())


def test_another_jetpack_is_told(orin: Device) -> None:
    orin.environment["FAKE_JETPACK"] = "5.1.2-b104"
    assert "JetPack is 5.1.2-b104; the model was compiled for >=6.1,<6.3" in refusal(orin.build())


def test_missing_tensorrt_is_told_with_the_package(orin: Device) -> None:
    orin.has_tensorrt, orin.tools = False, orin.tools - {"trtexec"}
    assert "none was found" in (told := refusal(orin.build())) and "python3-libnvinfer" in told


def test_a_missing_python_module_beside_trtexec_leads_to_build_sh(orin: Device) -> None:
    orin.has_tensorrt = False
    assert "or run build.sh" in refusal(orin.build())
    assert orin.run("sh", "build.sh").returncode == 0


def test_missing_trtexec_is_told_with_its_place(orin: Device) -> None:
    orin.tools -= {"trtexec"}
    assert "/usr/src/tensorrt/bin" in refusal(orin.run("sh", "build.sh"))


@pytest.mark.parametrize("name", ["model.onnx", "sample_input_0.bin", "expected_output_1.bin"])
def test_a_damaged_or_missing_file_is_named(name: str, orin: Device) -> None:
    path = orin.folder / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert f"{name} is damaged" in refusal(orin.build())
    path.unlink()
    assert f"{name} is missing" in refusal(orin.build())


def test_a_model_that_the_parser_rejects_is_told_in_its_words(orin: Device) -> None:
    orin.environment["FAKE_MISHAP"] = "parse"
    assert "TensorRT 10.3.0 rejects model.onnx: No importer registered for op: Odd" in refusal(orin.build())


@pytest.mark.parametrize("script", ["build.py", "build.sh"])
def test_memory_that_runs_out_while_building_is_told_with_what_to_do(script: str, orin: Device) -> None:
    orin.environment["FAKE_MISHAP"] = "memory"
    told = refusal(orin.build() if script == "build.py" else orin.run("sh", "build.sh"))
    assert "could not be allocated" in told and "add swap" in told
    assert not (orin.folder / "model.engine").exists()


@pytest.mark.parametrize(
    ("mishap", "sentence"),
    [
        ("elsewhere", "engines run only where, and with the version that, they were built"),
        ("context", "too little memory to run the engine"),
        ("run", "the engine failed to run"),
    ],
)
def test_an_engine_that_does_not_load_or_run_is_told(mishap: str, sentence: str, orin: Device) -> None:
    orin.environment["FAKE_MISHAP"] = mishap
    assert sentence in refusal(orin.build())


def test_wrong_outputs_fail_the_build_and_are_reported(orin: Device) -> None:
    orin.environment["FAKE_MISHAP"] = "wrong outputs"
    told = json.loads((orin.folder / "build.json").read_text())["snr_db_least"]
    assert f"{told:g} dB is the least. Do not use what was built" in refusal(orin.build())
    assert report(orin)["outputs"][0]["snr_db"] < told


@pytest.mark.parametrize(
    ("mishap", "sentence"), [("memory", "GPU's memory is used up"), ("driver", "driver version is insufficient")]
)
def test_a_failing_cuda_call_is_told(mishap: str, sentence: str, orin: Device) -> None:
    orin.environment["FAKE_CUDA"] = mishap
    assert sentence in refusal(orin.build())


def test_a_missing_cuda_runtime_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(build_folder.SCRIPTS))
    import cuda as runtime  # type: ignore[import-not-found]

    def nothing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(runtime.ctypes, "CDLL", nothing)
    with pytest.raises(runtime.Stop, match=r"libcudart\.so\) was not found: install cuda-cudart"):
        runtime.Cuda()


def test_low_memory_and_a_saving_power_mode_are_warnings(orin: Device) -> None:
    orin.free_kb, orin.environment["FAKE_POWER_MODE"] = 500_000, "15W"
    ran = orin.build("--check")
    assert ran.returncode == 0
    assert "The power mode is 15W" in ran.stdout and "488 MB of memory are free" in ran.stdout


def test_an_interrupted_trtexec_is_told(orin: Device) -> None:
    (orin.folder / "outputs.json").write_text('[{"name": "out')
    assert "outputs.json is missing or incomplete" in refusal(orin.build("--from-trtexec"))
