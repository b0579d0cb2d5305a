"""The shipped profiles are complete, and agree with physics and with the vendors' headlines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from planish.compiler.hardware import (
    ComputeUnit,
    Figure,
    HardwareProfile,
    Host,
    Memory,
    Quantization,
    Runtime,
    Support,
    figures,
    load_profiles,
    peak_gops,
)

FOLDER = Path(__file__).parents[2] / "hwprofiles"
FILES = sorted(FOLDER.glob("*.toml"))
PROFILES = {profile.name: profile for profile in load_profiles(FOLDER)}
TABLES: tuple[type[BaseModel], ...] = (
    HardwareProfile, Host, ComputeUnit, Memory, Support, Quantization, Runtime, Figure,
)  # fmt: skip

PROMISED = {
    "jetson-agx-orin-64", "jetson-agx-orin-32", "jetson-orin-nx-16", "jetson-orin-nx-8",
    "jetson-orin-nano-8", "jetson-agx-xavier", "jetson-xavier-nx", "t4", "a10", "l4", "a100", "h100",
    "h200", "rtx-4090", "iphone-13", "iphone-15", "iphone-15-pro", "iphone-16", "ipad-m4", "macbook-m3",
    "pixel-8", "galaxy-s24-cpu", "galaxy-s24-npu", "raspberry-pi-4", "raspberry-pi-5", "coral-edgetpu",
    "cortex-m7", "x86-avx2", "x86-avx512-vnni", "graviton3",
}  # fmt: skip


def rates(kind: str) -> Iterator[tuple[HardwareProfile, ComputeUnit]]:
    return ((profile, unit) for profile in PROFILES.values() for unit in profile.units if unit.kind == kind)


def gops(profile: HardwareProfile, dtype: str) -> float:
    figure = peak_gops(profile, dtype)
    assert figure is not None, f"{profile.name} has no rate for {dtype}"
    return figure.value


# What ships


def test_every_promised_profile_ships_under_its_own_name() -> None:
    assert set(PROFILES) >= PROMISED
    assert {path.stem for path in FILES} == set(PROFILES)


def test_no_name_or_alias_means_two_devices() -> None:
    names = Counter(name for profile in PROFILES.values() for name in (profile.name, *profile.aliases))
    assert [name for name, count in names.items() if count > 1] == []
    assert "jetson-orin" in PROFILES["jetson-agx-orin-64"].aliases
    assert "galaxy-s24" in PROFILES["galaxy-s24-cpu"].aliases
    assert "local" not in names


def test_the_readme_documents_every_field_and_no_other() -> None:
    documented = set(re.findall(r"^\| `([a-z_]+)`", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert documented == {field for table in TABLES for field in table.model_fields}


# Physics, and what vendors print on the box


@pytest.mark.parametrize("name", PROFILES)
def test_two_four_sparse_rates_are_twice_the_dense_ones(name: str) -> None:
    for unit in PROFILES[name].units:
        for dtype in ("fp16", "int8"):
            if sparse := unit.peak_gops.get(f"{dtype}_sparse"):
                assert sparse.value == pytest.approx(2 * unit.peak_gops[dtype].value, rel=0.005)


@pytest.mark.parametrize("name", PROFILES)
def test_narrower_dtypes_are_at_least_as_fast_and_at_most_as_their_width_and_units_allow(name: str) -> None:
    for unit in PROFILES[name].units:
        rate = {dtype: figure.value for dtype, figure in unit.peak_gops.items()}
        order = [rate[dtype] for dtype in ("fp32", "tf32", "fp16", "int8") if dtype in rate]
        assert order == sorted(order)
        if "fp16" in rate and "int8" in rate:
            assert rate["int8"] <= 4 * rate["fp16"] * 1.001
        if "fp16" in rate and "bf16" in rate and unit.kind == "gpu":
            assert rate["fp16"] == rate["bf16"]


@pytest.mark.parametrize("name", PROFILES)
def test_rates_bandwidths_and_sizes_are_in_the_units_of_their_fields(name: str) -> None:
    """A factor of 1000 (TOPS for GOPS, GB for MB) moves a device out of these ranges."""
    profile = PROFILES[name]
    best = max(figure.value for unit in profile.units for figure in unit.peak_gops.values())
    operations_per_byte = best / profile.memory.bandwidth_gb_s.value
    assert 0.3 < operations_per_byte < 2000
    assert 1 < profile.memory.bandwidth_gb_s.value < 10_000
    if not {unit.kind for unit in profile.units} & {"mcu", "tpu"}:
        assert 2048 <= profile.memory.size_mb.value <= 512 * 1024
        seconds_to_read_all = profile.memory.size_mb.value / 1024 / profile.memory.bandwidth_gb_s.value
        assert 0.01 < seconds_to_read_all < 1


@pytest.mark.parametrize(
    ("name", "ghz"),
    [
        ("jetson-agx-orin-64", 1.3),
        ("jetson-agx-orin-32", 0.93),
        ("jetson-orin-nx-16", 0.918),
        ("jetson-orin-nx-8", 0.765),
        ("jetson-orin-nano-8", 0.625),
    ],
)
def test_orin_gpus_compute_what_their_multiprocessors_and_clock_allow(name: str, ghz: float) -> None:
    gpu = PROFILES[name].units[0]
    assert gpu.cores is not None
    for dtype, per_clock in (("fp32", 256), ("fp16", 2048), ("int8", 4096)):
        expected = gpu.cores.value * per_clock * ghz
        assert gpu.peak_gops[dtype].value == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("name", "dtype", "headline_tops"),
    [
        ("jetson-agx-orin-64", "int8_sparse", 275),
        ("jetson-agx-orin-32", "int8_sparse", 200),
        ("jetson-orin-nx-16", "int8_sparse", 100),
        ("jetson-orin-nx-8", "int8_sparse", 70),
        ("jetson-orin-nano-8", "int8_sparse", 40),
        ("jetson-agx-xavier", "int8", 32),
        ("jetson-xavier-nx", "int8", 21),
    ],
)
def test_gpu_and_dla_together_make_the_tops_on_the_box(name: str, dtype: str, headline_tops: float) -> None:
    total = sum(unit.peak_gops[dtype].value for unit in PROFILES[name].units)
    assert total / 1000 == pytest.approx(headline_tops, rel=0.07)


def test_faster_siblings_are_faster() -> None:
    orins = (
        "jetson-orin-nano-8",
        "jetson-orin-nx-8",
        "jetson-orin-nx-16",
        "jetson-agx-orin-32",
        "jetson-agx-orin-64",
    )
    for family in (orins, ("t4", "l4", "a100", "h100"), ("raspberry-pi-4", "raspberry-pi-5", "graviton3")):
        speeds = [gops(PROFILES[name], "int8") for name in family]
        assert speeds == sorted(speeds)
    assert gops(PROFILES["h200"], "int8") == gops(PROFILES["h100"], "int8")
    assert PROFILES["h200"].memory.bandwidth_gb_s.value > PROFILES["h100"].memory.bandwidth_gb_s.value


# What the backends need


@pytest.mark.parametrize(
    "name", [name for name, profile in PROFILES.items() if profile.backend == "tensorrt" and profile.quantization]
)
def test_tensorrt_profiles_quantize_as_tensorrt_accepts_it(name: str) -> None:
    profile = PROFILES[name]
    scheme = profile.quantization
    assert scheme is not None
    assert (scheme.activation_dtype, scheme.activation_symmetric, scheme.min_channels) == ("int8", True, 16)
    assert profile.channel_alignment["fp16"].value == 8
    assert profile.channel_alignment["int8"].value == 32
    assert profile.runtime.opset is not None
    assert "tensorrt" in profile.runtime.versions


def test_weights_keep_seven_bits_exactly_where_the_multiply_add_saturates() -> None:
    hosted = [profile for profile in PROFILES.values() if profile.host is not None]
    assert len(hosted) >= 5
    for profile in hosted:
        assert profile.host is not None
        assert profile.quantization is not None
        saturates = profile.host.machine == "x86_64" and not any("vnni" in flag for flag in profile.host.cpu_flags)
        assert (profile.quantization.weight_bits == 7) == saturates


def test_only_targets_whose_sole_unit_is_a_cpu_can_be_this_machine() -> None:
    for profile in PROFILES.values():
        if profile.host is not None:
            assert [unit.kind for unit in profile.units] == ["cpu"]


def test_neural_accelerators_have_no_fp32_rate() -> None:
    for kind in ("npu", "tpu", "dla"):
        for _, unit in rates(kind):
            assert "fp32" not in unit.peak_gops
    assert PROFILES["coral-edgetpu"].support.dtypes == ("int8",)


def test_every_figure_cites_a_source_or_says_that_it_is_estimated() -> None:
    for profile in PROFILES.values():
        for where, figure in figures(profile):
            assert (figure.source in profile.sources) != figure.estimated, (profile.name, where)
        assert all(url.startswith("https://") for url in profile.sources.values())
