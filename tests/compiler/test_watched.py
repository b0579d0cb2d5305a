from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from planish.backends.to_onnx.scheme import scheme_for
from planish.compiler.alignment import asked_alignment
from planish.compiler.hardware import HardwareProfile, peak_gops
from planish.compiler.plugins import registry
from planish.compiler.roofline import float_dtype
from planish.compiler.watched import Facts, fact, told, watched

PROFILES = registry().profiles


def names(read: Facts) -> set[str]:
    return {told(path) for path, _ in read.items() if path[-1][0] != "kind"}


@pytest.mark.parametrize(
    ("ask", "facts"),
    [
        (lambda profile: profile.vendor, {"vendor"}),
        (lambda profile: profile.memory.size_mb.value, {"memory.size_mb.value"}),
        (lambda profile: "fp16" in profile.support.dtypes, {"support.dtypes.fp16"}),
        (lambda profile: profile.channel_alignment["int8"].value, {"channel_alignment.int8.value"}),
        (lambda profile: profile.channel_alignment.get("int4"), {"channel_alignment.int4"}),
        (lambda profile: profile.quantization.min_channels, {"quantization.min_channels"}),
        (lambda profile: len(profile.units), {"units"}),
    ],
)
def test_just_what_is_asked_is_noted(ask: Callable[[Any], Any], facts: set[str]) -> None:
    read: Facts = {}
    profile = PROFILES["t4"]
    assert ask(watched(profile, read)) == ask(profile)
    assert names(read) == facts


@pytest.mark.parametrize("name", PROFILES)
def test_a_watched_profile_answers_as_the_profile(name: str) -> None:
    profile = PROFILES[name]
    twin = watched(profile, {})
    assert isinstance(twin, HardwareProfile)
    assert float_dtype(twin) == float_dtype(profile)
    rate, own = peak_gops(twin, "fp16"), peak_gops(profile, "fp16")
    assert (rate and rate.value) == (own and own.value)
    assert asked_alignment(twin, scheme_for(twin)) == asked_alignment(profile, scheme_for(profile))
    assert twin.model_dump() == profile.model_dump() and twin == profile
    assert copy.copy(twin).units == profile.units


@pytest.mark.parametrize("question", [float_dtype, lambda profile: asked_alignment(profile, None)])
@pytest.mark.parametrize("first", PROFILES)
def test_where_no_noted_fact_differs_the_answer_is_the_same(question: Callable[[Any], Any], first: str) -> None:
    read: Facts = {}
    answer = question(watched(PROFILES[first], read))
    equal = [other for other in PROFILES.values() if all(fact(other, path) == value for path, value in read.items())]
    assert PROFILES[first] in equal
    assert [question(other) for other in equal] == [answer] * len(equal)


def test_a_table_that_another_profile_lacks_is_a_difference() -> None:
    read: Facts = {}
    assert watched(PROFILES["t4"], read).quantization is not None
    without = PROFILES["t4"].model_copy(update={"quantization": None})
    assert [path for path, value in read.items() if fact(without, path) != value]


def test_fields_of_a_dataclass_are_noted_and_replacing_one_reads_all() -> None:
    read: Facts = {}
    scheme = scheme_for(PROFILES["x86-avx2"])
    assert scheme is not None
    twin = watched(scheme, read)
    assert twin.min_channels == scheme.min_channels and names(read) == {"min_channels"}
    assert dataclasses.replace(twin, min_channels=3) == dataclasses.replace(scheme, min_channels=3)
    assert names(read) == {field.name for field in dataclasses.fields(scheme)}
