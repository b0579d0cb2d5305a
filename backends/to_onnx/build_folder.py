"""What goes to the device with model.onnx: a script that runs it with ONNX Runtime, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from planish.backends.to_onnx.providers import providers_of, software_of
from planish.backends.to_onnx.rounding import least_snr_db
from planish.backends.to_onnx.sample_files import inputs_for, save_outputs
from planish.compiler import build_folder
from planish.compiler.hardware import HardwareProfile

MODEL = "model.onnx"
SCRIPTS = Path(__file__).with_name("on_device")


def write(folder: Path, profile: HardwareProfile, inputs: Sequence[Tensor] | None) -> tuple[str, ...]:
    """Write scripts, samples and build.json beside ``model.onnx``; ``inputs`` are the tensors of one call.

    Returns the names of the files, relative to ``folder``.
    """
    model = ir.load(folder / MODEL)
    fed = inputs_for(model, inputs)
    providers = providers_of(profile)
    rounds = any(each.rounds for each in providers)
    told = build_folder.description(
        folder, MODEL, profile,
        [
            build_folder.save_tensor(folder, f"sample_input_{index}.bin", str(value.name), tensor)
            for index, (value, tensor) in enumerate(zip(model.graph.inputs, fed, strict=True))
        ],
        [*save_outputs(folder, MODEL, fed)],
        software_of(profile),
        providers=[each.told() for each in providers],
        snr_db_least=least_snr_db(folder / MODEL, fed, "float16" if rounds else "float32"),
    )  # fmt: skip
    shared = [build_folder.SCRIPTS / name for name in ("check.py", "machine.py", "samples.py")]
    names = build_folder.copy_scripts(folder, [*shared, *SCRIPTS.glob("*.*")])
    samples = (each["file"] for each in (*told["inputs"], *told["outputs"]))
    return (*names, build_folder.write_description(folder, told), *samples)
