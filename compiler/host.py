"""Whether the machine that planish runs on is the device that a profile describes."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import cpuinfo

from planish.compiler.hardware import HardwareProfile


def not_this_machine(profile: HardwareProfile) -> str | None:
    """Why times taken on this machine would say nothing about the device; None if it is such a machine."""
    if profile.host is None:
        return f"this machine is not a {profile.title}"
    machine = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    if machine != profile.host.machine:
        return f"this machine is {machine}, and {profile.name} needs {profile.host.machine}"
    lacking = sorted(set(profile.host.cpu_flags) - cpu_flags())
    if lacking:
        return f"this machine's processor has no {', '.join(lacking)}, which {profile.name} needs"
    return None


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor, named as Linux names them."""
    return frozenset(_info().get("flags", ()))


def cpu_name() -> str:
    return str(_info().get("brand_raw") or platform.processor() or platform.machine())


@functools.cache
def _info() -> dict[str, Any]:
    """Flags and name of the processor: from Linux itself where that is what runs, else by py-cpuinfo (0.5 s)."""
    linux = Path("/proc/cpuinfo")
    if not linux.exists():
        return dict(cpuinfo.get_cpu_info())
    lines = [line.partition(":") for line in linux.read_text().splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = fields.get("flags") or fields.get("Features") or ""
    return {"flags": flags.split(), "brand_raw": fields.get("model name") or fields.get("Hardware")}
