from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.compiler import plugins
from planish.compiler.contracts import Backend, Context, Lowered, Pass, Stage
from planish.compiler.errors import PluginError, UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.hookspecs import hookimpl
from planish.compiler.plugins import make_registry, registry
from planish.compiler.program import Program

ROOT = Path(__file__).parents[2]
BOARD = (ROOT / "hwprofiles" / "x86-avx2.toml").read_text()


@dataclass(frozen=True)
class Idle(Pass):
    name: ClassVar[str] = "idle"
    stage: ClassVar[Stage] = Stage.CLEAN

    def run(self, program: Program, context: Context) -> Program:
        return program


class Nowhere(Backend):
    name: ClassVar[str] = "nowhere"

    def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Lowered:
        return Lowered(files=())


def plugin(name: str, **returned: Any) -> SimpleNamespace:
    """A plugin called ``name`` that returns ``returned["passes"]`` from planish_passes, and so on."""
    return SimpleNamespace(__name__=name, **{f"planish_{kind}": hook(value) for kind, value in returned.items()})


def hook(returned: Any) -> Callable[[], Any]:
    return hookimpl(lambda: returned)


def pass_called(name: str) -> type[Pass]:
    return dataclass(frozen=True)(type("Called", (Idle,), {"name": name}))


def board(folder: Path, name: str, *aliases: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(BOARD.replace('name = "x86-avx2"', f'name = "{name}"\naliases = {[*aliases]}'))
    return path


def install(folder: Path, distribution: str, entry: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution as pip leaves it: a module and its metadata, found on sys.path."""
    module = distribution.replace("-", "_")
    info = folder / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[planish]\n{entry} = {module}\n")
    (folder / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def nothing_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "BUILT_IN", ())


# ---------------------------------------------------------------------- what is found


def test_what_is_built_in_is_found_by_name_with_its_owner() -> None:
    found = make_registry()
    assert {"erase-no-ops", "fold-batch-norm", "quantize-int8"} <= found.passes.keys()
    assert found.find_backend("onnx").name == "onnx"
    shipped = {path.stem for path in (ROOT / "hwprofiles").glob("*.toml")}
    assert shipped and shipped <= found.profiles.keys()
    assert found.owners["pass"]["quantize-int8"] == "planish.passes.plugin"
    assert found.owners["backend"]["onnx"] == "planish.backends.to_onnx.plugin"
    assert found.owners["profile"]["jetson-orin"] == "planish.hwprofiles.plugin"


def test_an_alias_finds_the_profile_and_is_no_profile_of_its_own() -> None:
    found = make_registry()
    assert found.find_profile("jetson-orin") is found.find_profile("jetson-agx-orin-64")
    assert "jetson-orin" not in found.profiles


def test_importing_planish_plugins_imports_no_plugin_and_looking_up_imports_no_vendor_library() -> None:
    code = """
import json, sys
from planish.compiler import plugins
imported = sorted(sys.modules.keys() & {*plugins.BUILT_IN, "planish.backends.to_onnx", "planish.hwprofiles"})
plugins.registry()
vendors = sys.modules.keys() & {"onnx", "onnxruntime", "onnxscript", "onnx_ir"}
print(json.dumps([imported, sorted(vendors)]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == [[], []]


def test_the_registry_is_made_once() -> None:
    assert registry() is registry()


def test_the_compiler_names_built_in_modules_that_exist() -> None:
    for module in plugins.BUILT_IN:
        assert (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").is_file(), module


@pytest.mark.usefixtures("nothing_built_in")
@given(mine=st.sets(st.sampled_from("abcdefgh")), yours=st.sets(st.sampled_from("abcdefgh")))
def test_names_are_sorted_and_owned_or_clash(mine: set[str], yours: set[str]) -> None:
    both = [plugin(who, passes=[*map(pass_called, names)]) for who, names in (("mine", mine), ("yours", yours))]
    if mine & yours:
        with pytest.raises(PluginError, match="both the plugin 'mine' and the plugin 'yours' claim that name"):
            make_registry(both)
        return
    found = make_registry(both)
    assert [*found.passes] == sorted(mine | yours)
    assert found.owners["pass"] == dict.fromkeys(mine, "mine") | dict.fromkeys(yours, "yours")
    assert all(found.find_pass(name).name == name for name in mine | yours)


@pytest.mark.usefixtures("nothing_built_in")
def test_a_folder_and_a_file_are_both_read(tmp_path: Path) -> None:
    one, two = board(tmp_path, "board-b"), board(tmp_path, "board-a")
    assert [*make_registry([plugin("files", profiles=[one, two])]).profiles] == ["board-a", "board-b"]
    assert [*make_registry([plugin("folder", profiles=[tmp_path])]).profiles] == ["board-a", "board-b"]


# ---------------------------------------------------------------------- unknown names


@pytest.mark.parametrize(
    ("find", "wrong", "right"),
    [
        ("find_pass", "idel", "idle"),
        ("find_backend", "no-where", "nowhere"),
        ("find_profile", "my-boards", "my-board"),
        ("find_profile", "old-nmae", "old-name"),
    ],
)
@pytest.mark.usefixtures("nothing_built_in")
def test_an_unknown_name_is_answered_with_the_closest(find: str, wrong: str, right: str, tmp_path: Path) -> None:
    path = board(tmp_path, "my-board", "old-name")
    found = make_registry([plugin("mine", passes=[Idle], backends=[Nowhere()], profiles=[path])])
    assert getattr(found, find)(right)
    with pytest.raises(UserError, match=f"there is no '{wrong}'; did you mean '{right}'"):
        getattr(found, find)(wrong)


# ---------------------------------------------------------------------- two owners


@pytest.mark.usefixtures("nothing_built_in")
def test_two_backends_of_one_name_are_refused() -> None:
    with pytest.raises(PluginError, match=r"backend 'nowhere'.*both the plugin 'one' and the plugin 'two'"):
        make_registry([plugin("one", backends=[Nowhere()]), plugin("two", backends=[Nowhere()])])


@pytest.mark.usefixtures("nothing_built_in")
def test_an_alias_that_is_the_name_of_another_profile_is_refused(tmp_path: Path) -> None:
    named, aliased = board(tmp_path, "board-a"), board(tmp_path, "board-b", "board-a")
    one, two = plugin("one", profiles=[named]), plugin("two", profiles=[aliased])
    for order in ([one, two], [two, one]):
        owners = " and ".join(f"the plugin '{each.__name__}'" for each in order)
        with pytest.raises(PluginError, match=f"profile 'board-a'.*both {owners} claim that name"):
            make_registry(order)


def test_a_plugin_cannot_take_the_name_of_something_built_in() -> None:
    expected = r"'quantize-int8'.*both the plugin 'planish.passes.plugin' of planish and the plugin 'mine' claim"
    with pytest.raises(PluginError, match=expected):
        make_registry([plugin("mine", passes=[pass_called("quantize-int8")])])


@pytest.mark.usefixtures("nothing_built_in")
def test_two_plugins_of_one_name_are_refused() -> None:
    with pytest.raises(PluginError, match="two plugins have one name"):
        make_registry([plugin("same", passes=[]), plugin("same", backends=[])])


# ---------------------------------------------------------------------- plugins that raise


@pytest.mark.usefixtures("nothing_built_in")
def test_an_installed_plugin_that_raises_at_import_is_named_with_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "broken-at-import", "broken", "raise RuntimeError('no licence')", monkeypatch)
    expected = "plugin 'broken' of broken-at-import 1.2: its import raised RuntimeError: no licence"
    with pytest.raises(PluginError, match=expected) as caught:
        make_registry()
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.usefixtures("nothing_built_in")
def test_an_installed_plugin_that_raises_in_a_hook_is_named_with_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import pluggy

@pluggy.HookimplMarker("planish")
def planish_backends():
    yield from ()
    raise OSError("no such device")
"""
    install(tmp_path, "broken-in-hook", "broken", code, monkeypatch)
    expected = "plugin 'broken' of broken-in-hook 1.2: planish_backends raised OSError: no such device"
    with pytest.raises(PluginError, match=expected) as caught:
        make_registry()
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.usefixtures("nothing_built_in")
def test_installed_plugins_are_loaded_in_the_order_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry, distribution in (("b", "first-raising"), ("a", "second-raising")):
        (tmp_path / entry).mkdir()
        install(tmp_path / entry, distribution, entry, f"raise RuntimeError({entry!r})", monkeypatch)
    with pytest.raises(PluginError, match="plugin 'a' of second-raising"):
        make_registry()


@pytest.mark.usefixtures("nothing_built_in")
def test_a_profile_that_is_wrong_names_its_plugin_and_the_field(tmp_path: Path) -> None:
    path = board(tmp_path, "my-board")
    path.write_text(path.read_text().replace("size_mb", "size_gb"))
    with pytest.raises(PluginError, match=r"(?s)the plugin 'mine'.*my-board.toml:\d+: memory\.size_gb") as caught:
        make_registry([plugin("mine", profiles=[path])])
    assert isinstance(caught.value.__cause__, UserError)


# ---------------------------------------------------------------------- wrong returns


class NoDataclass(Idle):
    name: ClassVar[str] = "no-dataclass"


@dataclass
class NotFrozen(Pass):
    name: ClassVar[str] = "not-frozen"
    stage: ClassVar[Stage] = Stage.CLEAN

    def run(self, program: Program, context: Context) -> Program:
        return program


@dataclass(frozen=True)
class NoRun(Pass):
    name: ClassVar[str] = "no-run"
    stage: ClassVar[Stage] = Stage.CLEAN


@dataclass(frozen=True)
class NoNameNoStage(Pass):
    def run(self, program: Program, context: Context) -> Program:
        return program


@dataclass(frozen=True)
class NameIsAnOption(Idle):
    name: str = "an-option"  # type: ignore[misc]


@pytest.mark.usefixtures("nothing_built_in")
@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ({"passes": None}, "planish_passes returned None, not a list"),
        ({"passes": Idle}, r"planish_passes returned <class .*Idle'>, not a list"),
        ({"passes": [Idle()]}, r"offers Idle\(\), which is not a subclass of Pass"),
        ({"passes": ["idle"]}, "offers 'idle', which is not a subclass of Pass"),
        ({"passes": [NoDataclass]}, r"NoDataclass.*is not a frozen dataclass"),
        ({"passes": [NotFrozen]}, r"NotFrozen.*is not a frozen dataclass"),
        ({"passes": [NoRun]}, r"NoRun.*does not define run"),
        ({"passes": [NoNameNoStage]}, r"NoNameNoStage.*has no name, has no stage \(one of Stage.CLEAN"),
        ({"passes": [NameIsAnOption]}, r"takes name for options \(annotate with ClassVar\)"),
        ({"passes": [pass_called("Not A Name")]}, r"has the name 'Not A Name' \(write it like"),
        ({"backends": [Nowhere]}, r"is a class \(offer an instance of it\)"),
        ({"backends": ["nowhere"]}, "offers 'nowhere', which is not a Backend"),
        ({"coupling_rules": {torch.ops.aten.conv2d.default: print}}, "is not for an op with all its overloads"),
        ({"coupling_rules": {torch.ops.aten.special_zeta: None}}, "has no function for a rule"),
        ({"coupling_rules": [print]}, "is no pair of an op and its rule"),
        (
            {"coupling_rules": {torch.ops.aten.conv2d: print}},
            "bring a coupling rule for aten.conv2d",
        ),
        ({"profiles": "/tmp"}, "offers '/', which is not a Path"),
        ({"profiles": [Path("missing.toml")]}, r"missing\.toml: No such file"),
        ({"profiles": [ROOT / "tests"]}, r"is a folder without a \.toml file"),
    ],
)
def test_what_no_hook_promises_is_told_with_the_plugin(returned: dict[str, Any], expected: str) -> None:
    with pytest.raises(PluginError, match=f"(?s)the plugin 'wrong'.*{expected}"):
        make_registry([plugin("wrong", **returned)])


@pytest.mark.usefixtures("nothing_built_in")
def test_a_misspelt_hook_is_told_with_the_closest() -> None:
    with pytest.raises(PluginError, match="no hook 'planish_pases'; did you mean 'planish_passes'"):
        make_registry([plugin("wrong", pases=[Idle])])


@pytest.mark.usefixtures("nothing_built_in")
@pytest.mark.usefixtures("nothing_built_in")
def test_two_owners_of_a_coupling_rule_are_both_named() -> None:
    op = torch.ops.aten.special_zeta
    both = [plugin(who, coupling_rules={op: print}) for who in ("mine", "yours")]
    with pytest.raises(
        PluginError, match=r"both the plugin 'mine' and the plugin 'yours' .* rule for aten\.special_zeta"
    ):
        make_registry(both)
    assert make_registry(both[:1]).coupling_rules == {op: print}


def test_a_plugin_whose_hooks_are_not_marked_is_told_so() -> None:
    with pytest.raises(PluginError, match=r"'forgetful': mark at least one of .*planish_passes.* with hookimpl"):
        make_registry([SimpleNamespace(__name__="forgetful", planish_passes=lambda: [Idle])])


@pytest.mark.usefixtures("nothing_built_in")
def test_a_hook_with_arguments_that_do_not_exist_is_told_with_the_plugin() -> None:
    wrong = SimpleNamespace(__name__="wrong", planish_passes=hookimpl(lambda model: [Idle]))
    with pytest.raises(PluginError, match=r"(?s)the plugin 'wrong': its registration raised.*model"):
        make_registry([wrong])
