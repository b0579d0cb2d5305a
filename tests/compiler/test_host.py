from __future__ import annotations

import platform

import pytest

from planish.compiler.hardware import Host
from planish.compiler.host import cpu_flags, cpu_name, not_this_machine
from tests.compiler.fakes import vnni


def machine() -> str:
    return platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")


def test_a_machine_that_has_all_that_is_needed_is_the_device() -> None:
    flags = tuple(sorted(cpu_flags())[:2])
    assert not_this_machine(vnni().model_copy(update={"host": Host(machine=machine(), cpu_flags=flags)})) is None


def test_missing_instructions_are_named() -> None:
    profile = vnni().model_copy(update={"host": Host(machine=machine(), cpu_flags=("avx9", "zfp"))})
    assert not_this_machine(profile) == f"this machine's processor has no avx9, zfp, which {profile.name} needs"


def test_another_architecture_is_named() -> None:
    other = "aarch64" if machine() == "x86_64" else "x86_64"
    profile = vnni().model_copy(update={"host": Host(machine=other, cpu_flags=())})
    assert not_this_machine(profile) == f"this machine is {machine()}, and {profile.name} needs {other}"


def test_a_board_is_never_this_machine() -> None:
    profile = vnni().model_copy(update={"host": None})
    assert not_this_machine(profile) == f"this machine is not a {profile.title}"


@pytest.mark.parametrize(("told", "means"), [("AMD64", "x86_64"), ("arm64", "aarch64"), ("x86_64", "x86_64")])
def test_the_names_of_other_systems_for_an_architecture_are_known(
    told: str, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: told)
    profile = vnni().model_copy(update={"host": Host(machine=means, cpu_flags=())})
    assert not_this_machine(profile) is None


def test_the_processor_has_a_name_and_flags() -> None:
    assert cpu_name()
    assert cpu_flags() == cpu_flags()
    if platform.system() == "Linux" and machine() == "x86_64":
        assert "sse2" in cpu_flags()
