"""Whether this machine is the device of a profile, with full TensorRT: engines are then built, run and timed here."""

from __future__ import annotations

import functools
import importlib.util
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from planish.compiler.build_folder import SCRIPTS, wanted
from planish.compiler.hardware import HardwareProfile

SOFTWARE = ("tensorrt", "jetpack")
"""What is asked for on the device, in the versions of the profile."""
NOT_HERE = "TensorRT builds and times its engine on the device (build.py, in the artifact)"


def not_here(profile: HardwareProfile) -> str | None:
    """Why engines for ``profile`` cannot be built on this machine; None where it is such a device."""
    told = wanted(profile, SOFTWARE)
    if importlib.util.find_spec("tensorrt") is None or "words" not in told["device"]:
        return NOT_HERE
    problems = _problems()(told, facts())
    return f"{NOT_HERE}: {problems[0].removesuffix('.')}" if problems else None


@functools.cache
def facts() -> dict[str, str]:
    """What this machine is; TensorRT is asked for its version in a process of its own."""
    code = "import json, machine; print(json.dumps(machine.facts()))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True)
    found: dict[str, str] = json.loads(ran.stdout.splitlines()[-1]) if ran.returncode == 0 else {}
    return found


@functools.cache
def _problems() -> Callable[[dict[str, Any], dict[str, str]], list[str]]:
    """``problems`` of machine.py, which is a script of devices and no module of planish."""
    found: Callable[[dict[str, Any], dict[str, str]], list[str]] = runpy.run_path(str(SCRIPTS / "machine.py"))[
        "problems"
    ]
    return found


def runtime() -> str:
    return f"TensorRT {facts()['tensorrt']}"
