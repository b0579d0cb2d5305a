"""What goes to a Mac with the package: scripts, and sample inputs with the outputs to expect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.backends.to_coreml.backend import FILE
from planish.backends.to_coreml.evaluator import Evaluator
from planish.backends.to_coreml.mil import MODEL, WEIGHTS, Feature, Type
from planish.compiler import build_folder
from planish.compiler.artifact import sha256_of
from planish.compiler.hardware import HardwareProfile

SCRIPTS = Path(__file__).with_name("on_device")
SNR_DB = 30.0
"""What outputs must have against the reference evaluation: assumed, since Apple's units round in other places than it.
Float16 has 50 dB and more in families of models; a wrong weight is far below (docs/backend-coreml.md)."""


def write(folder: Path, profile: HardwareProfile, inputs: Sequence[Tensor] | None) -> tuple[str, ...]:
    """Write scripts, samples and build.json beside the package in ``folder``. Returns their names.

    ``inputs``: the tensors of one call of the model; drawn if left out.
    """
    evaluator = Evaluator(folder / FILE)
    package = evaluator.package
    types = [(feature, package.inputs[feature.name]) for feature in package.input_features]
    images = {feature.name for feature, _ in types if feature.kind == "imageType"}
    if inputs is None or images:
        given = [_drawn(feature, declared) for feature, declared in types]
    else:
        given = [_one_row(tensor, declared) for tensor, (_, declared) in zip(inputs, types, strict=True)]
    named = {feature.name: tensor for (feature, _), tensor in zip(types, given, strict=True)}
    outputs = {name: value for name, value in evaluator(named).items() if not isinstance(value, str)}
    takes = [{**_saved(folder, "sample", name, value), "image": name in images} for name, value in named.items()]
    gives = [_saved(folder, "expected", name, value) for name, value in outputs.items()]
    told = build_folder.description(
        folder, _identity(folder), profile, takes, gives, (), package=FILE, snr_db_least=SNR_DB
    )
    told["files"].update(_sums(folder))
    shared = [build_folder.SCRIPTS / name for name in ("machine.py", "samples.py")]
    names = build_folder.copy_scripts(folder, [*shared, *SCRIPTS.glob("*.*")])
    return (*names, build_folder.write_description(folder, told), *(each["file"] for each in (*takes, *gives)))


def _identity(folder: Path) -> str:
    """The file of the package that tells it from others in a device's report: the weights, where it has some."""
    weights = Path(FILE) / WEIGHTS / "weight.bin"
    return (weights if (folder / weights).is_file() else Path(FILE) / MODEL).as_posix()


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(each for each in (folder / FILE).rglob("*") if each.is_file())
    return {each.relative_to(folder).as_posix(): sha256_of(each) for each in files}


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


def _saved(folder: Path, role: str, name: str, value: Any) -> dict[str, Any]:
    """A tensor as a file of 32-bit numbers; the scores of a classifier as well, with their labels."""
    labels = {"labels": [*value]} if isinstance(value, dict) else {}
    tensor = torch.tensor([*value.values()]) if isinstance(value, dict) else value
    kind = torch.float32 if tensor.is_floating_point() else torch.int32
    return {**build_folder.save_tensor(folder, f"{role}_{name}.bin", name, tensor.to(kind)), **labels}
