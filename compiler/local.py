"""The target ``local``: this machine, its capabilities detected and its rates measured once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import platformdirs
import psutil
import torch
from pydantic import ValidationError
from torch import nn

from planish.compiler.artifact import planish_version
from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Backend, Context
from planish.compiler.errors import UserError
from planish.compiler.hardware import ComputeUnit, Figure, HardwareProfile, Host, Memory
from planish.compiler.host import cpu_flags, cpu_name, not_this_machine
from planish.compiler.inputs import Inputs
from planish.compiler.plugins import registry
from planish.compiler.program import Program
from planish.compiler.report import write_atomically
from planish.compiler.trace import trace

ROWS, WIDTH = 128, 1024
"""The matrix product that rates are measured with: [128, 1024] x [1024, 1024]."""
CHAINS = (8, 40)
"""A few and many convolutions, one after the other."""
TINY, NARROW = (16, 4, 4), (16, 32, 32)
"""Channels, height and width of those that tell overheads, and of those that tell what narrow layers lose."""


def local_profile() -> HardwareProfile:
    """The profile of this machine: measured (under 30 s) at the first call, read from the user's cache later.

    What it can do is taken from the shipped profile that shares most with it. Raises UserError if there is none.
    """
    cache = _cache_file()
    with contextlib.suppress(OSError, UnicodeDecodeError, ValidationError):  # absent, or of another version
        return HardwareProfile.model_validate_json(cache.read_text())
    profile = measure(closest_relative(registry().profiles.values()))
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, profile.model_dump_json(indent=2))
    except OSError as failure:  # a read-only home: the measurement is as good
        warnings.warn(
            f"planish measures this machine again next time: {cache} cannot be written ({failure}).", stacklevel=2
        )
    return profile


def closest_relative(profiles: Iterable[HardwareProfile]) -> HardwareProfile:
    """The profile whose requirements this machine meets, the most demanding of them; a CPU's, not a board's first."""
    fitting = [profile for profile in profiles if not_this_machine(profile) is None and profile.host is not None]
    if not fitting:
        raise UserError(
            f"Name a target instead of 'local': no profile describes a machine like this one ({platform.machine()})."
        )
    return max(fitting, key=lambda profile: (len(profile.host.cpu_flags) if profile.host else 0, profile.name))


def measure(relative: HardwareProfile) -> HardwareProfile:
    """``relative`` with the rates, overheads and memory of this machine, of one thread: so artifacts are timed."""
    backend = registry().find_backend(relative.backend)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rates = _rates(backend, relative)
        overheads = _overheads(backend, relative)
        narrow = _half_rate_channels(backend, relative, rates, overheads)
    unit = ComputeUnit(name=f"one core of {cpu_name()}", kind="cpu", cores=_measured(1.0), peak_gops=_figures(rates))
    memory = Memory(
        size_mb=_measured(psutil.virtual_memory().total / 2**20),
        bandwidth_gb_s=_measured(_bandwidth_gb_s()),
        cache_kb=relative.memory.cache_kb if relative.memory.cache_kb and relative.memory.cache_kb.estimated else None,
    )
    host = (
        Host(machine=relative.host.machine, cpu_flags=tuple(sorted(relative.host.cpu_flags))) if relative.host else None
    )
    return relative.model_copy(
        update={
            "name": "local", "title": f"this machine ({cpu_name()})", "aliases": (), "units": (unit,), "memory": memory,
            "host": host, "support": relative.support.model_copy(update={"dtypes": tuple(sorted(rates))}),
            "kernel_overhead_us": _figures(overheads), "half_rate_channels": _figures(narrow),
            "notes": (f"Capabilities as in {relative.name}; rates measured with {backend.name} on one thread.",),
        }
    )  # fmt: skip


def _measured(value: float) -> Figure:
    return Figure(value=value, measured=True)


def _figures(values: Mapping[str, float]) -> dict[str, Figure]:
    """Without those so small that the clock did not tell them."""
    return {name: _measured(value) for name, value in values.items() if value > 0}


def _rates(backend: Backend, profile: HardwareProfile) -> dict[str, float]:
    """GOP/s of a matrix product by dtype, as the backend runs it."""
    rows = torch.randn(ROWS, WIDTH)
    programs = _by_dtype(backend, profile, nn.Sequential(nn.Linear(WIDTH, WIDTH)), rows)
    times = _timed(backend, profile, [*programs.values()], rows)
    return {dtype: 2 * ROWS * WIDTH * WIDTH / (1e6 * each) for dtype, each in zip(programs, times, strict=True)}


def _overheads(backend: Backend, profile: HardwareProfile) -> dict[str, float]:
    """Microseconds of a kernel that computes next to nothing, by dtype: of many in a chain less those of a few."""
    x = torch.randn(2, *TINY)
    few, many = (_by_dtype(backend, profile, _chain(count, TINY[0], kernel=1), x) for count in CHAINS)
    times = _timed(backend, profile, [*few.values(), *many.values()], x[:1])
    pairs = zip(few, times[: len(few)], times[len(few) :], strict=True)
    return {dtype: 1e3 * (long - short) / (CHAINS[1] - CHAINS[0]) for dtype, short, long in pairs}


def _half_rate_channels(
    backend: Backend, profile: HardwareProfile, rates: Mapping[str, float], overheads: Mapping[str, float]
) -> dict[str, float]:
    """The n½ that explains how long narrow convolutions take, by dtype."""
    channels, height, width = NARROW
    x = torch.randn(2, *NARROW)
    programs = _by_dtype(backend, profile, _chain(CHAINS[0], channels, kernel=3), x)
    times = _timed(backend, profile, [*programs.values()], x[:1])
    operations = 2 * 9 * channels * channels * height * width
    found: dict[str, float] = {}
    for dtype, milliseconds in zip(programs, times, strict=True):
        reached = operations / (1e6 * milliseconds / CHAINS[0] - 1e3 * overheads[dtype])
        found[dtype] = channels * (rates[dtype] / reached - 1)
    return found


def _chain(count: int, channels: int, kernel: int) -> nn.Sequential:
    padding = kernel // 2
    return nn.Sequential(
        *(layer for _ in range(count) for layer in (nn.Conv2d(channels, channels, kernel, padding=padding), nn.ReLU()))
    )


def _by_dtype(backend: Backend, profile: HardwareProfile, model: nn.Module, x: torch.Tensor) -> dict[str, Program]:
    """``model`` as it is, and in INT8 where the backend has it."""
    real = trace(model.eval(), Inputs((x,)))
    scheme = backend.scheme(profile)
    if scheme is None:
        return {"fp32": real}
    context = Context(profile, scheme, Calibration([Inputs((x,))], "drawn"))
    return {"fp32": real, "int8": registry().find_pass("quantize-int8")().run(real, context)}


def _timed(backend: Backend, profile: HardwareProfile, programs: Sequence[Program], x: torch.Tensor) -> list[float]:
    """Milliseconds of each, in turns."""
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        folders = [Path(scratch) / str(index) for index in range(len(programs))]
        for folder, program in zip(folders, programs, strict=True):
            folder.mkdir()
            backend.lower(program, profile, folder)
        return [latency.median_ms for latency in backend.time(folders, profile, [x])]


def _bandwidth_gb_s() -> float:
    """Bytes read and written a second when 256 MiB are copied; the best of five."""
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds) / 1e9


def _cache_file() -> Path:
    machine = json.dumps([cpu_name(), sorted(cpu_flags()), psutil.cpu_count(), planish_version(), 2])
    digest = hashlib.sha256(machine.encode()).hexdigest()[:16]
    return Path(platformdirs.user_cache_dir("planish")) / f"local-{digest}.json"
