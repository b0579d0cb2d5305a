"""What goes to the device with model.onnx: scripts, and samples with the outputs to expect.

The scripts are plain files (``on_device/``); all that differs from model to model stands in build.json.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from planish.backends.to_tensorrt.reference import Reference
from planish.backends.to_tensorrt.sparsity import has_two_four_weights
from planish.backends.to_tensorrt.versions import oldest_version
from planish.compiler.artifact import planish_version
from planish.compiler.hardware import HardwareProfile

MODEL = "model.onnx"
SCRIPTS = Path(__file__).with_name("on_device")
MOST_ROWS = 8
"""Of a dynamic axis: what the engine's optimization profile ends at. build.json can be edited."""
SNR_DB = {"float": 30.0, "int8": 15.0}
"""What outputs must have against ONNX Runtime's, of the Q/DQ graph in float: assumed. FP16 has 40 dB and more, INT8
kernels 24 dB in a deep network (docs/architecture.md); a wrong scale or a lost bias is far below."""


def write(folder: Path, profile: HardwareProfile, inputs: Sequence[Tensor] | None) -> tuple[str, ...]:
    """Write scripts, samples and build.json beside ``model.onnx``; ``inputs`` are the tensors of one call.

    Returns the names of the files, relative to ``folder``.
    """
    model = ir.load(folder / MODEL)
    told = _told(folder, model, profile, _drawn(model) if inputs is None else _one_row(model, inputs))
    _write_json(folder / "build.json", told)
    for script in sorted(SCRIPTS.glob("*.*")):
        shutil.copyfile(script, folder / script.name)
    text = (SCRIPTS / "build.sh").read_text().replace("@OPTIONS@", _trtexec_options(told, profile))
    (folder / "build.sh").write_text(text)
    for name in ("build.sh", "build.py"):
        (folder / name).chmod(0o755)
    names = [script.name for script in SCRIPTS.glob("*.*")]
    return (*sorted(names), "build.json", *(each["file"] for each in (*told["inputs"], *told["outputs"])))


def _one_row(model: ir.Model, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs of one row, where the batch is dynamic: what latency is asked for."""
    first = [value.shape is not None and len(value.shape) > 0 and value.shape[0] for value in model.graph.inputs]
    return [
        tensor.detach()[:1] if isinstance(size, ir.SymbolicDim) else tensor.detach()
        for tensor, size in zip(inputs, first, strict=True)
    ]


def _drawn(model: ir.Model) -> list[Tensor]:
    """Random inputs, dynamic sizes 1; zeros where they are whole numbers."""
    drawn = []
    for value in model.graph.inputs:
        sizes = [size if isinstance(size, int) else 1 for size in value.shape or ()]
        dtype = getattr(torch, _TORCH.get(str(value.dtype), str(value.dtype).lower()))
        drawn.append(torch.randn(sizes, dtype=dtype) if dtype.is_floating_point else torch.zeros(sizes, dtype=dtype))
    return drawn


_TORCH = {"FLOAT": "float32", "DOUBLE": "float64"}
"""ONNX's name of a dtype -> torch's, where they differ."""


def _told(folder: Path, model: ir.Model, profile: HardwareProfile, inputs: Sequence[Tensor]) -> dict[str, Any]:
    integers = any(node.op_type == "DequantizeLinear" for node in model.graph)
    version = oldest_version(profile)
    fed = [*_inputs(folder, model, inputs, version < (9, 0))]
    outputs = [*_outputs(folder, inputs)]
    shipped = [
        MODEL,
        *(path.name for path in folder.glob(f"{MODEL}.data")),
        *(each["file"] for each in (*fed, *outputs)),
    ]
    return {
        "format": 1,
        "planish": planish_version(),
        "target": profile.name,
        "title": profile.title,
        "device": {"words": _words(profile), "memory_mb": profile.memory.size_mb.value},
        "versions": {name: profile.runtime.versions[name] for name in _SOFTWARE if name in profile.runtime.versions},
        "precision": {
            "fp16": "fp16" in profile.support.dtypes,
            "int8": integers,
            "sparse": "2:4" in profile.support.sparsity and has_two_four_weights(model),
        },
        "free_mb_least": round(1024 + 4 * sum(path.stat().st_size for path in folder.glob(f"{MODEL}*")) / 2**20),
        "snr_db_least": SNR_DB["int8" if integers else "float"],
        "inputs": fed,
        "outputs": outputs,
        "files": {name: _sha256(folder / name) for name in shipped},
    }


_SOFTWARE = ("tensorrt", "jetpack")


def _words(profile: HardwareProfile) -> list[str]:
    """What the device's own name must hold: those of the profile, without the memory size of a Jetson."""
    words = profile.name.split("-")
    if words[0] != "jetson":
        return words
    return [word for word in words[1:] if not word.isdigit()]


def _inputs(folder: Path, model: ir.Model, inputs: Sequence[Tensor], narrow: bool) -> Iterator[dict[str, Any]]:
    for index, (value, tensor) in enumerate(zip(model.graph.inputs, inputs, strict=True)):
        # TensorRT before 9 has INT32 for INT64: onnx-tensorrt, docs/Changelog.md, 9.0
        stored = tensor.to(torch.int32) if narrow and tensor.dtype is torch.int64 else tensor
        dynamic = [isinstance(size, ir.SymbolicDim) for size in value.shape or ()]
        least = [1 if free else size for free, size in zip(dynamic, tensor.shape, strict=True)]
        most = [max(MOST_ROWS, size) if free else size for free, size in zip(dynamic, tensor.shape, strict=True)]
        yield {
            "name": value.name, "dtype": _name(stored.dtype), "shape": [*tensor.shape],
            "file": _save(folder, f"sample_input_{index}.bin", stored),
            "least": least, "best": [*tensor.shape], "most": most,
        }  # fmt: skip


def _outputs(folder: Path, inputs: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    reference = Reference(folder / MODEL)
    for index, (name, tensor) in enumerate(zip(reference.output_names, reference(inputs), strict=True)):
        yield {
            "name": name, "dtype": _name(tensor.dtype), "shape": [*tensor.shape],
            "file": _save(folder, f"expected_output_{index}.bin", tensor),
        }  # fmt: skip


def _save(folder: Path, name: str, tensor: Tensor) -> str:
    (folder / name).write_bytes(tensor.contiguous().numpy(force=True).tobytes())
    return name


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _trtexec_options(told: dict[str, Any], profile: HardwareProfile) -> str:
    """The options as lines of shell: ``set -- …``."""
    options = ["--profilingVerbosity=detailed", "--exportLayerInfo=layers.json", "--timingCacheFile=timing.cache"]
    if oldest_version(profile) < (11, 0):
        options += [f"--{name}" for name in ("fp16", "int8") if told["precision"][name]]
    if told["precision"]["sparse"]:
        options.append("--sparsity=enable")
    dynamic = [each for each in told["inputs"] if each["least"] != each["most"]]
    if dynamic:
        for option, key in (("minShapes", "least"), ("optShapes", "best"), ("maxShapes", "most"), ("shapes", "shape")):
            shapes = ",".join(f"{each['name']}:{'x'.join(map(str, each[key]))}" for each in dynamic)
            options.append(f"--{option}={shapes}")
    options.append("--loadInputs=" + ",".join(f"{each['name']}:{each['file']}" for each in told["inputs"]))
    return "set -- " + " \\\n    ".join(shlex.quote(option) for option in options)


def _write_json(path: Path, told: dict[str, Any]) -> None:
    path.write_text(json.dumps(told, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
