"""The target ``local``: this machine, its capabilities detected and its rates measured once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Iterable
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
    """``relative`` with the rates and the memory of this machine."""
    backend = registry().find_backend(relative.backend)
    cores = psutil.cpu_count(logical=False) or 1
    rates = {dtype: Figure(value=rate, measured=True) for dtype, rate in _rates(backend, relative, cores).items()}
    unit = ComputeUnit(name=cpu_name(), kind="cpu", cores=Figure(value=float(cores), measured=True), peak_gops=rates)
    memory = Memory(
        size_mb=Figure(value=psutil.virtual_memory().total / 2**20, measured=True),
        bandwidth_gb_s=Figure(value=_bandwidth_gb_s(), measured=True),
        cache_kb=relative.memory.cache_kb if relative.memory.cache_kb and relative.memory.cache_kb.estimated else None,
    )
    host = (
        Host(machine=relative.host.machine, cpu_flags=tuple(sorted(relative.host.cpu_flags))) if relative.host else None
    )
    return relative.model_copy(
        update={
            "name": "local", "title": f"this machine ({cpu_name()})", "aliases": (), "units": (unit,), "memory": memory,
            "host": host, "support": relative.support.model_copy(update={"dtypes": tuple(sorted(rates))}),
            "notes": (f"Capabilities as in {relative.name}; rates measured with {backend.name} on {cores} cores.",),
        }
    )  # fmt: skip


def _rates(backend: Backend, profile: HardwareProfile, cores: int) -> dict[str, float]:
    """GOP/s of a matrix product by dtype, as the backend runs it on all cores."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        real = trace(nn.Sequential(nn.Linear(WIDTH, WIDTH)), Inputs((rows,)))
    programs = {"fp32": real}
    scheme = backend.scheme(profile)
    if scheme is not None:
        context = Context(profile, scheme, Calibration([Inputs((rows,))], "drawn"))
        programs["int8"] = registry().find_pass("quantize-int8")().run(real, context)
    return _timed(backend, profile, programs, rows, cores)


def _timed(
    backend: Backend, profile: HardwareProfile, programs: dict[str, Program], rows: torch.Tensor, cores: int
) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="planish-") as scratch:
        folders = [Path(scratch) / dtype for dtype in programs]
        for folder, program in zip(folders, programs.values(), strict=True):
            folder.mkdir()
            backend.lower(program, profile, folder)
        latencies = backend.time(folders, profile, [rows], threads=cores)
    operations = 2 * ROWS * WIDTH * WIDTH
    return {dtype: operations / (latency.median_ms * 1e6) for dtype, latency in zip(programs, latencies, strict=True)}


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
    machine = json.dumps([cpu_name(), sorted(cpu_flags()), psutil.cpu_count(), planish_version(), 1])
    digest = hashlib.sha256(machine.encode()).hexdigest()[:16]
    return Path(platformdirs.user_cache_dir("planish")) / f"local-{digest}.json"
