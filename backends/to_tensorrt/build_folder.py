"""What goes to the device with model.onnx: scripts that build the engine, and what they are told in build.json."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from planish.backends.to_onnx.rounding import least_snr_db
from planish.backends.to_onnx.sample_files import inputs_for, save_outputs
from planish.backends.to_tensorrt.dla import is_dla
from planish.backends.to_tensorrt.sparsity import has_two_four_weights
from planish.backends.to_tensorrt.this_machine import SOFTWARE
from planish.backends.to_tensorrt.versions import oldest_version
from planish.compiler import build_folder
from planish.compiler.hardware import HardwareProfile

MODEL = "model.onnx"
SCRIPTS = Path(__file__).with_name("on_device")
MOST_ROWS = 8
"""Of a dynamic axis: what the engine's optimization profile ends at. build.json can be edited."""


def write(folder: Path, profile: HardwareProfile, inputs: Sequence[Tensor] | None) -> tuple[str, ...]:
    """Write scripts, samples and build.json beside ``model.onnx``; ``inputs`` are the tensors of one call.

    Latency is asked for one row, where the batch is dynamic. Returns the names of the files, relative to ``folder``.
    """
    return write_for(folder, profile, inputs_for(ir.load(folder / MODEL), inputs))


def write_for(folder: Path, profile: HardwareProfile, inputs: Sequence[Tensor]) -> tuple[str, ...]:
    """As ``write``, for just these inputs."""
    told = _told(folder, ir.load(folder / MODEL), profile, inputs)
    shared = [build_folder.SCRIPTS / name for name in ("machine.py", "samples.py")]
    names = build_folder.copy_scripts(folder, [*shared, *SCRIPTS.glob("*.*")])
    text = (SCRIPTS / "build.sh").read_text().replace("@OPTIONS@", _trtexec_options(told, profile))
    (folder / "build.sh").write_text(text)
    samples = (each["file"] for each in (*told["inputs"], *told["outputs"]))
    return (*names, build_folder.write_description(folder, told), *samples)


def _told(folder: Path, model: ir.Model, profile: HardwareProfile, inputs: Sequence[Tensor]) -> dict[str, Any]:
    integers = any(node.op_type == "DequantizeLinear" for node in model.graph)
    return build_folder.description(
        folder, MODEL, profile,
        [*_inputs(folder, model, inputs, oldest_version(profile) < (9, 0))],
        [*save_outputs(folder, MODEL, inputs)],
        SOFTWARE,
        precision={
            "fp16": "fp16" in profile.support.dtypes,
            "int8": integers,
            "dla": is_dla(profile),
            "sparse": "2:4" in profile.support.sparsity and has_two_four_weights(model),
        },
        free_mb_least=round(1024 + 4 * sum(path.stat().st_size for path in folder.glob(f"{MODEL}*")) / 2**20),
        snr_db_least=least_snr_db(folder / MODEL, inputs, "float16"),
    )  # fmt: skip


def _inputs(folder: Path, model: ir.Model, inputs: Sequence[Tensor], narrow: bool) -> Iterator[dict[str, Any]]:
    for index, (value, tensor) in enumerate(zip(model.graph.inputs, inputs, strict=True)):
        # TensorRT before 9 has INT32 for INT64: onnx-tensorrt, docs/Changelog.md, 9.0
        stored = tensor.to(torch.int32) if narrow and tensor.dtype is torch.int64 else tensor
        dynamic = [isinstance(size, ir.SymbolicDim) for size in value.shape or ()]
        least = [1 if free else size for free, size in zip(dynamic, tensor.shape, strict=True)]
        most = [max(MOST_ROWS, size) if free else size for free, size in zip(dynamic, tensor.shape, strict=True)]
        saved = build_folder.save_tensor(folder, f"sample_input_{index}.bin", str(value.name), stored)
        yield {**saved, "least": least, "best": [*tensor.shape], "most": most}


def _trtexec_options(told: dict[str, Any], profile: HardwareProfile) -> str:
    """The options as lines of shell: ``set -- …``."""
    options = ["--profilingVerbosity=detailed", "--exportLayerInfo=layers.json", "--timingCacheFile=timing.cache"]
    if oldest_version(profile) < (11, 0):
        options += [f"--{name}" for name in ("fp16", "int8") if told["precision"][name]]
    if told["precision"]["sparse"]:
        options.append("--sparsity=enable")
    if told["precision"]["dla"]:
        options += ["--useDLACore=0", "--allowGPUFallback"]
    dynamic = [each for each in told["inputs"] if each["least"] != each["most"]]
    if dynamic:
        for option, key in (("minShapes", "least"), ("optShapes", "best"), ("maxShapes", "most"), ("shapes", "shape")):
            shapes = ",".join(f"{each['name']}:{'x'.join(map(str, each[key]))}" for each in dynamic)
            options.append(f"--{option}={shapes}")
    options.append("--loadInputs=" + ",".join(f"{each['name']}:{each['file']}" for each in told["inputs"]))
    return "set -- " + " \\\n    ".join(shlex.quote(option) for option in options)
