"""From what the user names as target and backend to the profile and the backend."""

from __future__ import annotations

from pathlib import Path

from planish.compiler.contracts import Backend
from planish.compiler.hardware import HardwareProfile, load_profile
from planish.compiler.plugins import registry

Target = str | Path | HardwareProfile
FALLBACK = "onnx"
"""Serves devices whose own backend is not installed: what most runtimes can be fed with."""


def find_profile(target: Target) -> HardwareProfile:
    """The profile that ``target`` names. Raises UserError with the closest names."""
    if isinstance(target, HardwareProfile):
        return target
    if str(target) == "local":
        from planish.compiler.local import local_profile

        return local_profile()
    if str(target).endswith(".toml"):
        return load_profile(Path(target))
    return registry().find_profile(str(target))


def find_backend(profile: HardwareProfile, wanted: str | Backend | None) -> tuple[Backend, str]:
    """The backend, and a note if it is not the device's own."""
    if isinstance(wanted, Backend):
        return wanted, ""
    known = registry().backends
    if wanted is not None:
        return registry().find_backend(wanted), ""
    if profile.backend in known:
        return known[profile.backend], ""
    note = f"{profile.title} takes {profile.backend}, for which no backend is installed: lowered to {FALLBACK} instead."
    return registry().find_backend(FALLBACK), note


def takes_dynamic_shapes(profile: HardwareProfile, backend: Backend) -> bool:
    """Whether the batch can stay dynamic: the device and the files of the backend have to take it."""
    return profile.support.dynamic_shapes and not backend.fixed_shapes
