"""What goes to a Mac with the package: scripts, and sample inputs with the outputs to expect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_coreml.evaluator import Evaluator
from planish.backends.to_coreml.mil import Feature, Type
from planish.compiler.artifact import planish_version

SCRIPTS = Path(__file__).with_name("on_device")
MODEL = "model.mlpackage"
SAMPLES = "samples.json"
SNR_DB = 30.0
"""What outputs must have against the reference evaluation: assumed, since Apple's units round in other places than it.
Float16 has 50 dB and more in families of models; a wrong weight is far below (docs/backend-coreml.md)."""


def write(folder: Path, inputs: Sequence[Tensor] | None) -> tuple[str, ...]:
    """Write scripts and samples beside the package in ``folder``. Returns their names.

    ``inputs``: the tensors of one call of the model; drawn if left out.
    """
    evaluator = Evaluator(folder / MODEL)
    package = evaluator.package
    types = [(feature, package.inputs[feature.name]) for feature in package.input_features]
    images = {feature.name for feature, _ in types if feature.kind == "imageType"}
    if inputs is None or images:
        given = [_drawn(feature, declared) for feature, declared in types]
    else:
        given = [_one_row(tensor, declared) for tensor, (_, declared) in zip(inputs, types, strict=True)]
    named = {feature.name: tensor for (feature, _), tensor in zip(types, given, strict=True)}
    outputs = {name: value for name, value in evaluator(named).items() if not isinstance(value, str)}
    takes = [_stored(folder, "input", name, value, name in images) for name, value in named.items()]
    gives = [_stored(folder, "output", name, value, False) for name, value in outputs.items()]
    stored = [*takes, *gives]
    told = {
        "planish": planish_version(),
        "model": MODEL,
        "snr_db": SNR_DB,
        "inputs": takes,
        "outputs": gives,
    }
    (folder / SAMPLES).write_text(json.dumps(told, indent=2) + "\n")
    scripts = sorted(script.name for script in SCRIPTS.iterdir() if script.suffix in (".py", ".swift", ".md"))
    for name in scripts:
        shutil.copyfile(SCRIPTS / name, folder / name)
    return (*scripts, SAMPLES, *(each["file"] for each in stored if "file" in each))


def _drawn(feature: Feature, declared: Type) -> Tensor:
    """Random numbers, pixels of an image, or zeros where whole numbers are wanted; one row."""
    sizes = [size or 1 for size in declared.shape or ()]
    generator = torch.Generator().manual_seed(0)
    if feature.kind == "imageType":
        return torch.randint(0, 256, sizes, generator=generator).to(declared.dtype)
    if declared.dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(declared.dtype)
    return torch.zeros(sizes, dtype=declared.dtype)


def _one_row(tensor: Tensor, declared: Type) -> Tensor:
    batched = declared.shape is not None and declared.shape[:1] == (None,)
    return (tensor[:1] if batched else tensor).detach().to(declared.dtype)


def _stored(folder: Path, role: str, name: str, value: Any, image: bool) -> dict[str, Any]:
    """A tensor as a file of 32-bit numbers; the scores of a classifier as they are."""
    if isinstance(value, dict):
        return {"name": name, "scores": value}
    kind = torch.float32 if value.is_floating_point() else torch.int32
    file = f"{role}_{name}.bin"
    (folder / file).write_bytes(value.to(kind).contiguous().numpy().tobytes())
    dtype = str(kind).removeprefix("torch.")
    return {"name": name, "file": file, "shape": [*value.shape], "dtype": dtype, "image": image}
