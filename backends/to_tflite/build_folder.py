"""What goes to the device with model.tflite: a script, samples with the outputs to expect, and an array for C."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor

from planish.backends.to_tflite.audit import FLOATS, operators_in
from planish.backends.to_tflite.backend import ENDS, FILE
from planish.backends.to_tflite.ends import End, Ends, to_file
from planish.backends.to_tflite.schema import TYPES
from planish.compiler.hardware import HardwareProfile

SCRIPTS = Path(__file__).with_name("on_device")
_ROW = 16
"""Bytes on a line of the C array."""


def write(folder: Path, profile: HardwareProfile, inputs: Sequence[Tensor] | None) -> tuple[str, ...]:
    """Write scripts and samples beside ``model.tflite``; ``inputs`` are the tensors of one call, drawn if left out.

    Returns the names of the files, relative to ``folder``.
    """
    ends = Ends.model_validate_json((folder / ENDS).read_text())
    given = [_drawn(end) for end in ends.inputs] if inputs is None else inputs
    arrays = to_file(given, ends.inputs)
    fed = [_save(folder, f"sample_input_{place}.npy", array) for place, array in enumerate(arrays)]
    expected = [
        _save(folder, f"expected_output_{place}.npy", array)
        for place, array in enumerate(_outputs(folder / FILE, arrays))
    ]
    told = {"inputs": fed, "outputs": expected, "precision": _precision(folder / FILE)}
    (folder / "check.json").write_text(json.dumps(told, indent=2) + "\n")
    kinds = {unit.kind for unit in profile.units}
    scripts = ["README.md", "check.py", *(["compile_edgetpu.sh"] if "tpu" in kinds else [])]
    for name in scripts:
        shutil.copyfile(SCRIPTS / name, folder / name)
    array_files = write_c_array(folder) if "mcu" in kinds else ()
    return (*scripts, "check.json", *fed, *expected, *array_files)


def _drawn(end: End) -> Tensor:
    sizes = [end.shape[end.order.index(dim)] for dim in range(len(end.order))]
    dtype = getattr(torch, end.dtype)
    return torch.randn(sizes, dtype=dtype) if dtype.is_floating_point else torch.zeros(sizes, dtype=dtype)


def _save(folder: Path, name: str, array: np.ndarray) -> str:
    np.save(folder / name, array)
    return name


def _outputs(file: Path, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [np.asarray(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]


def _precision(file: Path) -> str:
    """The coarsest that an operator computes with or reads."""
    types = {tensor.Type() for op in operators_in(file) for tensor in (*op.inputs, *op.outputs) if tensor is not None}
    if TYPES[torch.int8] in types:
        return "int8"
    return "float16" if FLOATS[1] in types else "float32"


def write_c_array(folder: Path) -> tuple[str, str]:
    """The file as ``model_data.cc`` and ``model_data.h``: flash memory holds it, aligned as flatbuffers need."""
    data = (folder / FILE).read_bytes()
    (folder / "model_data.h").write_text(
        "#pragma once\n\nextern const unsigned char model_data[];\nextern const unsigned int model_data_size;\n"
    )
    with (folder / "model_data.cc").open("w") as file:
        file.write('#include "model_data.h"\n\nalignas(16) const unsigned char model_data[] = {\n')
        file.writelines(_rows(data))
        file.write(f"}};\nconst unsigned int model_data_size = {len(data)};\n")
    return "model_data.cc", "model_data.h"


def _rows(data: bytes) -> Iterator[str]:
    for start in range(0, len(data), _ROW):
        yield "    " + " ".join(f"0x{byte:02x}," for byte in data[start : start + _ROW]) + "\n"
