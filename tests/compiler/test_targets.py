from __future__ import annotations

import pytest
from torch import nn

import planish
from planish.compiler.errors import UserError
from planish.compiler.targets import FALLBACK, find_backend, find_profile
from tests.compiler.fakes import FakeBackend, vnni
from tests.conftest import ROOT


def test_a_target_is_found_by_name_alias_path_and_profile() -> None:
    by_name = find_profile("jetson-agx-orin-64")
    assert find_profile("jetson-orin") == by_name
    assert find_profile(str(ROOT / "hwprofiles" / "jetson-agx-orin-64.toml")) == by_name
    assert find_profile(ROOT / "hwprofiles" / "jetson-agx-orin-64.toml") == by_name
    assert find_profile(by_name) is by_name


@pytest.mark.parametrize(
    ("name", "meant"), [("jetson-orn", "jetson-orin"), ("raspberry-pi5", "raspberry-pi-5"), ("X86-AVX2", "x86-avx2")]
)
def test_an_unknown_target_is_told_with_the_closest_names(name: str, meant: str) -> None:
    try:
        found = find_profile(name)
    except UserError as failure:
        assert name in str(failure) and repr(meant) in str(failure)
    else:
        assert found.name == meant


@pytest.mark.parametrize("path", ["nowhere.toml", str(ROOT / "hwprofiles")])
def test_a_path_that_is_no_profile_is_told(path: str) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml|hwprofiles"):
        find_profile(path)


@pytest.mark.parametrize("target", [None, 3, b"x86-avx2"])
def test_what_is_no_target_is_a_user_error(target: object) -> None:
    with pytest.raises(UserError):
        find_profile(target)  # type: ignore[arg-type]


def test_the_backend_of_the_profile_serves_it_without_a_note() -> None:
    backend, note = find_backend(vnni(), None)
    assert (backend.name, note) == ("onnx", "")


def test_a_backend_that_is_named_or_given_is_taken() -> None:
    given = FakeBackend()
    assert find_backend(vnni(), given) == (given, "")
    assert find_backend(find_profile("iphone-15"), "onnx")[0].name == "onnx"


def test_a_device_whose_backend_is_not_installed_falls_back_and_says_so() -> None:
    profile = vnni().model_copy(update={"backend": "not-yet-there"})
    backend, note = find_backend(profile, None)
    assert backend.name == FALLBACK
    assert "not-yet-there" in note and profile.title in note and FALLBACK in note


def test_an_unknown_backend_is_told_with_the_closest_name() -> None:
    with pytest.raises(UserError, match=r"'onx'.*'onnx'"):
        find_backend(vnni(), "onx")


def test_the_public_functions_tell_an_unknown_target_before_any_work() -> None:
    for function in (planish.compile, planish.check, planish.plan):
        with pytest.raises(UserError, match="x86-avx2"):
            function(nn.ReLU(), "x86-avx22")
