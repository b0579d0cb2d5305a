"""What this device is: facts, and what of them does not fit build.json."""

from __future__ import annotations

import importlib
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path("/")
"""Where /proc and /etc lie."""


class Stop(Exception):
    """A sentence for the user: what is wrong, and what to do."""


def processor_facts() -> dict[str, str]:
    """What can be found out of a machine whose CPU or NPU is asked for."""
    found = {
        "device": _board() or _processor(), "system": platform.platform(terse=True), "memory_mb": _memory("MemTotal"),
        "free_mb": _memory("MemAvailable"), "governor": _governor(), "python": platform.python_version(),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value}


def _board() -> str | None:
    """The name of a single-board computer, or of a phone."""
    named = _named_by_the_device_tree()
    return _output(["getprop", "ro.product.model"]).strip() or None if named is None else named


def _named_by_the_device_tree() -> str | None:
    model = ROOT / "proc/device-tree/model"
    return model.read_text(errors="replace").strip("\0\n ") if model.exists() else None


def _governor() -> str | None:
    path = ROOT / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    return path.read_text().strip() if path.exists() else None


def facts() -> dict[str, str]:
    """What can be found out of a machine with an NVIDIA GPU, by name; what cannot is left out."""
    found = {
        "device": _device(),
        "jetpack": _jetpack(),
        "tensorrt": tensorrt_version(),
        "power mode": _after_colon(_output(["nvpmodel", "-q"])),
        "memory_mb": _memory("MemTotal") if _is_jetson() else _gpu("memory.total"),
        "free_mb": _memory("MemAvailable") if _is_jetson() else _gpu("memory.free"),
        "python": platform.python_version(),
        "driver": None if _is_jetson() else _gpu("driver_version"),
    }
    return {name: value for name, value in found.items() if value}


def check(told: dict[str, Any], found: dict[str, str], others: Sequence[str], go_on: bool) -> None:
    """Print facts, problems (``others`` among them) and warnings; raise Stop for problems unless told to ``go_on``."""
    for name, value in found.items():
        print(f"{name:16} {value}")
    wrong = [*problems(told, found), *others]
    for problem in wrong:
        print(f"! {problem}")
    if wrong and not go_on:
        raise Stop("the device is not as build.json wants it (above). --other-device goes on all the same.")
    for warning in warnings(told, found):
        print(f"- {warning}")


def problems(told: dict[str, Any], found: dict[str, str]) -> list[str]:
    """A sentence for each thing that is not as build.json wants it."""
    wanted = [_wrong_device(told, found), _wrong_processor(told), _wrong_memory(told, found)]
    wanted += [_wrong_version(name, allowed, found) for name, allowed in sorted(told["versions"].items())]
    return [sentence for sentence in wanted if sentence]


def warnings(told: dict[str, Any], found: dict[str, str]) -> list[str]:
    """What may be as it is, but costs time."""
    sentences = []
    governor = found.get("governor", "performance")
    if governor != "performance":
        sentences.append(f"The governor of the clock is {governor}: times vary more than with `performance`.")
    mode = found.get("power mode", "")
    if mode and not mode.startswith("MAXN"):
        sentences.append(
            f"The power mode is {mode}: times are those of this mode. `sudo nvpmodel -m 0` and `sudo jetson_clocks` "
            "give all the device has. Build again after changing it."
        )
    least = told.get("free_mb_least", 0.0)
    if float(found.get("free_mb", least)) < least:
        sentences.append(
            f"{float(found['free_mb']):.0f} MB of memory are free and the build may need about {least:.0f} (an "
            "estimate): close the desktop and other programs if it fails, or add swap."
        )
    return sentences


def _wrong_device(told: dict[str, Any], found: dict[str, str]) -> str | None:
    device = found.get("device")
    if "words" not in told["device"]:
        return None
    if device is None:
        return f"This machine has no NVIDIA GPU that it tells of: run this on {told['title']}."
    missing = [
        word for word in told["device"]["words"] if not re.search(rf"\b{re.escape(word)}\b", device, re.IGNORECASE)
    ]
    return f"This is {device}; the model was compiled for {told['title']}." if missing else None


def _wrong_processor(told: dict[str, Any]) -> str | None:
    """Kernels are chosen by what the processor can; one that lacks it computes otherwise, and slower."""
    wanted = told["device"]
    own = _SAME.get(platform.machine(), platform.machine())
    if wanted.get("machine", own) != own:
        return f"This processor is {own}; the model was compiled for {wanted['machine']}."
    missing = sorted(set(wanted.get("cpu_flags", [])) - _flags())
    if not missing or not _flags():
        return None
    return f"This processor lacks {', '.join(missing)}, which {told['title']} has."


_SAME = {"AMD64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}
"""What Windows and macOS call them."""


def _flags() -> set[str]:
    """As Linux lists them; nothing elsewhere."""
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    return set(listed[1].split()) if listed else set()


def _cpuinfo() -> str:
    path = ROOT / "proc/cpuinfo"
    return path.read_text(errors="replace") if path.exists() else ""


def _processor() -> str | None:
    name = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return name[1].strip() if name else platform.processor() or None


def _wrong_memory(told: dict[str, Any], found: dict[str, str]) -> str | None:
    """Modules of one name come with different memory; the system keeps a part of it for itself."""
    has, wanted = float(found.get("memory_mb", 0)), float(told["device"].get("memory_mb", 0))
    if not has or not wanted or 0.7 * wanted <= has <= 1.1 * wanted:
        return None
    return f"This device has {has:.0f} MB of memory, {told['title']} has {wanted:.0f}."


def _wrong_version(name: str, allowed: str, found: dict[str, str]) -> str | None:
    version = found.get(name)
    titles = {"tensorrt": "TensorRT", "jetpack": "JetPack"}
    title = titles.get(name, name)
    if version is None:
        remedy = _REMEDIES.get(name, f"pip install '{name}{allowed}'")
        return f"{title} {allowed} is needed, and none was found. {remedy}"
    if within(version, allowed):
        return None
    return f"{title} is {version}; the model was compiled for {allowed}. Compile it again for this version."


_REMEDIES = {
    "tensorrt": "Its Python module comes with JetPack (apt install python3-libnvinfer), or by pip install tensorrt.",
    "jetpack": "Is this a Jetson?",
}


def within(version: str, allowed: str) -> bool:
    """Whether a version lies in a range such as ``>=10.3,<10.4``."""
    own = _numbers(version)
    for bound in allowed.split(","):
        match = re.match(r"(>=|<=|==|~=|>|<)(.+)", bound)
        if match is None:
            raise Stop(f"build.json is damaged: {allowed!r} is no range of versions.")
        sign, limit = match[1], _numbers(match[2])
        cut, end = (own + [0] * 4)[:4], (limit + [0] * 4)[:4]
        fits = {
            ">=": cut >= end, "<=": cut <= end, ">": cut > end, "<": cut < end, "==": own[: len(limit)] == limit,
            "~=": cut >= end and own[: len(limit) - 1] == limit[:-1],
        }  # fmt: skip
        if not fits[sign]:
            return False
    return True


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", re.split(r"[-+]", version)[0])]


def tensorrt_version() -> str | None:
    """Of its Python module, else of trtexec; None if neither is there."""
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError:
        banner = re.search(r"TensorRT(?:\.trtexec)? \[?TensorRT v(\d+)", _output([trtexec(), "--help"]))
        return _spelled(banner[1]) if banner else None
    return str(tensorrt.__version__)


def _spelled(digits: str) -> str:
    """8502 is 8.5.2, 100300 is 10.3.0."""
    number = int(digits)
    if number >= 100000:
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return f"{number // 1000}.{number // 100 % 10}.{number % 100}"


def trtexec() -> str:
    """JetPack keeps it outside the PATH."""
    usual = ROOT / "usr/src/tensorrt/bin/trtexec"
    return str(usual) if usual.exists() else "trtexec"


def _is_jetson() -> bool:
    return (ROOT / "etc/nv_tegra_release").exists()


def _device() -> str | None:
    named = _named_by_the_device_tree()
    return _gpu("name") if named is None else named


def _jetpack() -> str | None:
    """The package nvidia-jetpack has its version; without it, the release of Jetson Linux tells the major one."""
    version = _output(["dpkg-query", "--showformat", "${Version}", "--show", "nvidia-jetpack"]).strip()
    if version:
        return version
    release = ROOT / "etc/nv_tegra_release"
    told = re.search(r"R(\d+) \(release\), REVISION: (\d+)\.(\d+)", release.read_text()) if release.exists() else None
    return _jetpack_of(int(told[1]), int(told[2]), int(told[3])) if told else None


def _jetpack_of(major: int, minor: int, patch: int) -> str | None:
    """https://developer.nvidia.com/embedded/jetpack-archive: each JetPack with its Jetson Linux."""
    known = {(35, 1): "5.0.2", (35, 2): "5.1", (35, 3): "5.1.1", (35, 4): "5.1.2", (35, 5): "5.1.3", (35, 6): "5.1.4",
             (36, 2): "6.0", (36, 3): "6.0", (36, 5): "6.2.2"}  # fmt: skip
    if (major, minor) == (36, 4):
        return "6.1" if patch < 3 else "6.2"
    return known.get((major, minor))


def _memory(name: str) -> str | None:
    path = ROOT / "proc/meminfo"
    told = re.search(rf"{name}:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return str(int(told[1]) // 1024) if told else None


def _gpu(field: str) -> str | None:
    """A field of the first GPU."""
    lines = _output(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]).splitlines()
    return lines[0].strip() if lines and lines[0].strip() else None


def _after_colon(text: str) -> str | None:
    return text.splitlines()[0].partition(":")[2].strip() if ":" in text else None


def _output(command: Sequence[str]) -> str:
    """What a program prints; "" if it is not there or fails."""
    try:
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.decode(errors="replace")
