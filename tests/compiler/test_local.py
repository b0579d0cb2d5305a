from __future__ import annotations

import platform
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from planish.compiler import local
from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile, Host, figures
from planish.compiler.host import cpu_flags, not_this_machine
from planish.compiler.inputs import Inputs
from planish.compiler.local import closest_relative, local_profile
from planish.compiler.plugins import registry
from planish.compiler.roofline import estimate_latency
from planish.compiler.targets import find_profile
from planish.compiler.trace import trace
from tests.compiler.fakes import vnni


def _described() -> bool:
    return any(profile.host and not_this_machine(profile) is None for profile in registry().profiles.values())


needs_relative = pytest.mark.skipif(not _described(), reason=f"no profile describes a {platform.machine()} like this")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "planish" / "local.json"


@pytest.fixture
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(local, "_cache_file", lambda: cache)
    return cache


@needs_relative
def test_this_machine_is_measured_in_half_a_minute_and_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.perf_counter()
    profile = find_profile("local")
    assert time.perf_counter() - start < 30
    assert profile.name == "local" and not_this_machine(profile) is None
    monkeypatch.setattr(local, "measure", lambda relative: pytest.fail("measured a second time"))
    assert local_profile() == profile


@needs_relative
def test_measured_figures_say_so_and_are_plausible(own_cache: Path) -> None:
    profile = local_profile()
    (unit,) = profile.units
    assert all(rate.measured for rate in unit.peak_gops.values())
    assert profile.memory.size_mb.value == pytest.approx(psutil.virtual_memory().total / 2**20)
    assert 0.5 < profile.memory.bandwidth_gb_s.value < 5000
    assert 1 < unit.peak_gops["fp32"].value < 1e6
    assert all(figure.source is None for where, figure in figures(profile) if where[0] in ("units", "memory"))
    assert set(profile.support.dtypes) == set(unit.peak_gops)


@needs_relative
def test_overheads_and_what_narrow_layers_lose_are_measured(own_cache: Path) -> None:
    profile = local_profile()
    for table in (profile.kernel_overhead_us, profile.half_rate_channels):
        assert table and table.keys() <= set(profile.support.dtypes)
        assert all(figure.measured for figure in table.values())
    assert all(0.01 < figure.value < 1000 for figure in profile.kernel_overhead_us.values())


class Convolutions(nn.Sequential):
    def __init__(self, count: int, channels: int) -> None:
        super().__init__(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count)))


@needs_relative
@pytest.mark.slow
def test_estimates_order_nets_of_equal_macs_as_their_times_do(own_cache: Path, tmp_path: Path) -> None:
    """One layer of 128 channels, and as many of 16 as have the same MACs: their times are far apart."""
    profile = local_profile()
    backend = registry().find_backend(profile.backend)
    programs = [
        trace(Convolutions(count, channels).eval(), Inputs((torch.randn(2, channels, 4, 4),)))
        for count, channels in ((1, 128), (64, 16))
    ]
    times = []
    for channels, program in zip((128, 16), programs, strict=True):
        folder = tmp_path / str(channels)
        folder.mkdir()
        backend.lower(program, profile, folder)
        times.append(backend.time([folder], profile, [torch.randn(1, channels, 4, 4)])[0].median_ms)
    estimates = [estimate_latency(program, profile).median_ms for program in programs]
    measured, estimated = times[1] / times[0], estimates[1] / estimates[0]
    assert measured > 1.5, "the example tells nothing here"
    assert estimated > 1 and 1 / 4 < estimated / measured < 4


@needs_relative
def test_the_profile_of_this_machine_is_a_valid_one(own_cache: Path) -> None:
    profile = local_profile()
    assert HardwareProfile.model_validate_json(profile.model_dump_json()) == profile
    backend = registry().find_backend(profile.backend)
    assert backend.cannot_time(profile) is None


@needs_relative
@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "local"}', b"\xff\xfe"])
def test_a_damaged_cache_is_measured_anew(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "local.json"
    path.write_bytes(content)
    monkeypatch.setattr(local, "_cache_file", lambda: path)
    monkeypatch.setattr(local, "measure", lambda relative: vnni())
    assert local_profile() == vnni()
    assert HardwareProfile.model_validate_json(path.read_text()) == vnni()


@needs_relative
def test_a_cache_that_cannot_be_written_costs_a_measurement_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(local, "_cache_file", lambda: tmp_path / "file" / "planish" / "local.json")
    monkeypatch.setattr(local, "measure", lambda relative: vnni())
    assert local_profile() == vnni()


@needs_relative
def test_the_closest_relative_is_the_most_demanding_that_fits() -> None:
    machine = next(p.host.machine for p in registry().profiles.values() if p.host and not_this_machine(p) is None)
    flags = tuple(sorted(cpu_flags()))
    few = vnni().model_copy(update={"name": "few", "host": Host(machine=machine, cpu_flags=flags[:1])})
    more = vnni().model_copy(update={"name": "more", "host": Host(machine=machine, cpu_flags=flags[:3])})
    lacking = vnni().model_copy(update={"name": "no", "host": Host(machine=machine, cpu_flags=("nope", *flags))})
    board = vnni().model_copy(update={"name": "board", "host": None})
    assert closest_relative([lacking, few, more, board]).name == "more"


def test_a_machine_that_no_profile_describes_is_told_what_to_do() -> None:
    board = vnni().model_copy(update={"host": None})
    with pytest.raises(UserError, match=f"Name a target instead of 'local'.*{platform.machine()}"):
        closest_relative([board])


def test_the_cache_belongs_to_this_machine_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = local._cache_file()
    assert mine.name.startswith("local-") and mine == local._cache_file()
    monkeypatch.setattr(local, "cpu_name", lambda: "another processor")
    assert local._cache_file() != mine
