"""What goes to a device beside a model's files: scripts, samples with the outputs to expect, and build.json.

The scripts are plain files (``scripts/on_device`` and a backend's own ``on_device``); all that differs from model to
model stands in build.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.compiler.artifact import planish_version, sha256_of
from planish.compiler.hardware import UNIT_KINDS, HardwareProfile

SCRIPTS = Path(__file__).parent / "scripts" / "on_device"
"""machine.py: what the device is; samples.py: files, outputs, report; check.py: runs a model that needs no build."""


def copy_scripts(folder: Path, scripts: Iterable[Path]) -> list[str]:
    """Put ``scripts`` into ``folder``. Returns their names."""
    names = []
    for script in sorted(scripts):
        shutil.copyfile(script, folder / script.name)
        if script.suffix in (".sh", ".py") and script.read_bytes().startswith(b"#!"):
            (folder / script.name).chmod(0o755)
        names.append(script.name)
    return names


def save_tensor(folder: Path, file: str, name: str, tensor: Tensor) -> dict[str, Any]:
    """Write the raw values, row by row, to ``file``. Returns what build.json says of it."""
    (folder / file).write_bytes(tensor.contiguous().numpy(force=True).tobytes())
    return {"name": name, "dtype": dtype_name(tensor.dtype), "shape": [*tensor.shape], "file": file}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def description(
    folder: Path, model: str, profile: HardwareProfile, inputs: Sequence[dict[str, Any]],
    outputs: Sequence[dict[str, Any]], software: Iterable[str], **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """What build.json says: target, device, versions of ``software`` where the profile names some, files with sums."""
    files = [model, *(path.name for path in folder.glob(f"{model}.data")), *(e["file"] for e in (*inputs, *outputs))]
    return {
        "format": 1,
        "planish": planish_version(),
        **wanted(profile, software),
        "model": model,
        **more,
        "inputs": [*inputs],
        "outputs": [*outputs],
        "files": {name: sha256_of(folder / name) for name in files},
    }


def wanted(profile: HardwareProfile, software: Iterable[str]) -> dict[str, Any]:
    """What ``machine.problems`` compares a machine with."""
    versions = profile.runtime.versions
    return {
        "target": profile.name,
        "title": profile.title,
        "device": _device(profile),
        "versions": {name: versions[name] for name in software if name in versions},
    }


def write_description(folder: Path, told: dict[str, Any]) -> str:
    (folder / "build.json").write_text(json.dumps(told, indent=2) + "\n")
    return "build.json"


def _device(profile: HardwareProfile) -> dict[str, Any]:
    """What tells the device: its name where NVIDIA's tools say it, else what its processor can."""
    if any(name in profile.runtime.versions for name in ("tensorrt", "jetpack")):
        return {"words": _words(profile), "memory_mb": profile.memory.size_mb.value}
    if profile.host is not None:
        return {"machine": profile.host.machine, "cpu_flags": [*profile.host.cpu_flags]}
    return {}


def _words(profile: HardwareProfile) -> list[str]:
    """What the device's own name must hold: those of the profile, without the memory size of a Jetson."""
    words = [word for word in profile.name.split("-") if word not in UNIT_KINDS]  # a Jetson's DLA is a target too
    if words[0] != "jetson":
        return words
    return [word for word in words[1:] if not word.isdigit()]
