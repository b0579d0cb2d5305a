"""Finds passes, backends and hardware profiles: built-in and third-party ones, by the same hooks."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pluggy
import torch

from planish.compiler import hookspecs
from planish.compiler.contracts import Backend, Pass, Stage
from planish.compiler.coupling.inference import Rule
from planish.compiler.coupling.rules import BUILT_IN as BUILT_IN_RULES
from planish.compiler.errors import PluginError, UserError, closest
from planish.compiler.hardware import HardwareProfile, load_profile, load_profiles

GROUP = "planish"
"""Entry-point group of third-party plugins."""
BUILT_IN = (
    "planish.backends.to_coreml.plugin",
    "planish.backends.to_onnx.plugin",
    "planish.backends.to_tensorrt.plugin",
    "planish.backends.to_tflite.plugin",
    "planish.hwprofiles.plugin",
    "planish.passes.plugin",
)
"""Modules that register like third-party plugins; named, not imported: the compiler knows none of them."""

Kind = Literal["pass", "backend", "profile", "coupling rule"]
Owned = TypeVar("Owned")


@dataclass(frozen=True)
class Registry:
    """Everything that plugins offer, by name, in sorted order."""

    passes: Mapping[str, type[Pass]]
    backends: Mapping[str, Backend]
    profiles: Mapping[str, HardwareProfile]
    """By name, without the aliases; ``find_profile`` takes both."""
    coupling_rules: Mapping[Any, Rule]
    """Those that plugins add, by op."""
    owners: Mapping[Kind, Mapping[str, str]]
    """Kind -> name (and alias) -> name of the plugin that brings it."""

    def find_pass(self, name: str) -> type[Pass]:
        """The pass called ``name``. Raises UserError with the closest names."""
        return _find("pass", name, self.passes)

    def find_backend(self, name: str) -> Backend:
        """The backend called ``name``. Raises UserError with the closest names."""
        return _find("backend", name, self.backends)

    def find_profile(self, name: str) -> HardwareProfile:
        """The profile with that name or alias. Raises UserError with the closest names and aliases."""
        named = {known: profile for profile in self.profiles.values() for known in _names(profile)}
        return _find("profile", name, named)


@functools.cache
def registry() -> Registry:
    """What the built-in and the installed plugins offer; they are loaded at the first call.

    Raises PluginError that names the plugin and its distribution if one raises, offers something that is no
    pass, backend or profile, or claims a name that another one owns.
    """
    return make_registry()


def make_registry(extra_plugins: Iterable[object] = ()) -> Registry:
    """As ``registry``, loaded anew, with ``extra_plugins``: modules or objects that implement hooks."""
    plugins = _Plugins()
    for owner, plugin in _load(extra_plugins):
        plugins.register(owner, plugin)
    offered: dict[Kind, dict[str, tuple[_Owner, Any]]] = {
        "pass": _own("pass", plugins.offers("planish_passes", _pass_problems), _own_name),
        "backend": _own("backend", plugins.offers("planish_backends", _backend_problems), _own_name),
        "profile": _own("profile", _profiles(plugins.offers("planish_profiles", _path_problems)), _names),
        "coupling rule": _own_rules(plugins.offers("planish_coupling_rules", _rule_problems)),
    }
    return Registry(
        passes={name: found for name, (_, found) in offered["pass"].items()},
        backends={name: found for name, (_, found) in offered["backend"].items()},
        profiles={name: found for name, (_, found) in offered["profile"].items() if name == found.name},
        coupling_rules=dict(found for _, found in offered["coupling rule"].values()),
        owners={kind: {name: owner.name for name, (owner, _) in named.items()} for kind, named in offered.items()},
    )


def _find(kind: Kind, name: str, known: Mapping[str, Owned]) -> Owned:
    if name not in known:
        raise UserError(f"Name a known {kind}: there is no {name!r}{closest(name, known)}")
    return known[name]


def _own_name(offered: type[Pass] | Backend) -> list[str]:
    return [offered.name]


def _names(profile: HardwareProfile) -> list[str]:
    return [profile.name, *profile.aliases]


# ---------------------------------------------------------------------- owners


@dataclass(frozen=True)
class _Owner:
    """A plugin as messages name it."""

    name: str
    distribution: str = ""
    """Name and version of the package that it came with; "" for an object that the caller passed."""

    def __str__(self) -> str:
        return f"the plugin {self.name!r}" + (f" of {self.distribution}" if self.distribution else "")


@contextmanager
def _blamed(owner: _Owner, doing: str) -> Iterator[None]:
    """Turn whatever the plugin raises into a PluginError that names it."""
    try:
        yield
    except Exception as failure:
        raised = f"{type(failure).__name__}: {failure}"
        raise PluginError(f"Mend or uninstall {owner}: {doing} raised {raised}") from failure


def _own(
    kind: Kind, offers: Iterable[tuple[_Owner, Any]], names_of: Callable[[Any], list[str]]
) -> dict[str, tuple[_Owner, Any]]:
    """What is offered, with its owner, under each of its names; PluginError for a second owner of a name."""
    owned: dict[str, tuple[_Owner, Any]] = {}
    for owner, offered in offers:
        for name in names_of(offered):
            if name in owned:
                raise PluginError(
                    f"Rename the {kind} {name!r} in one of its plugins, or uninstall one: "
                    f"both {owned[name][0]} and {owner} claim that name."
                )
            owned[name] = owner, offered
    return dict(sorted(owned.items()))


def _own_rules(offers: Iterable[tuple[_Owner, Any]]) -> dict[str, tuple[_Owner, Any]]:
    """Rules by op, as ``_own`` does; an op that planish has a rule for is owned already."""
    owned: dict[str, tuple[_Owner, Any]] = {}
    for owner, (op, rule) in offers:
        built_in = {op, op._qualified_op_name} & BUILT_IN_RULES.keys()
        other = "planish itself" if built_in else owned.get(str(op), ("",))[0]
        if other:
            raise PluginError(f"Uninstall one plugin: both {other} and {owner} bring a coupling rule for {op}.")
        owned[str(op)] = owner, (op, rule)
    return owned


# ---------------------------------------------------------------------- plugins


def _load(extra_plugins: Iterable[object]) -> Iterator[tuple[_Owner, object]]:
    for name in BUILT_IN:
        owner = _Owner(name, "planish")
        with _blamed(owner, "its import"):
            plugin: object = importlib.import_module(name)
        yield owner, plugin
    entries = importlib.metadata.entry_points(group=GROUP)
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        owner = _Owner(entry.name, f"{entry.dist.name} {entry.dist.version}" if entry.dist else "")
        with _blamed(owner, "its import"):
            plugin = entry.load()
        yield owner, plugin
    for plugin in extra_plugins:
        yield _Owner(getattr(plugin, "__name__", type(plugin).__name__)), plugin


class _Plugins:
    """The plugin manager, and the owner of each plugin that is registered in it."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.hooks = frozenset(vars(self.manager.hook))
        self.owners: dict[str, _Owner] = {}

    def register(self, owner: _Owner, plugin: object) -> None:
        if owner.name in self.owners:
            raise PluginError(f"Uninstall one of {self.owners[owner.name]} and {owner}: two plugins have one name.")
        with _blamed(owner, "its registration"):
            self.manager.register(plugin, owner.name)
        implemented = [caller.name for caller in self.manager.get_hookcallers(plugin) or ()]
        for name in implemented:
            if name not in self.hooks:
                raise PluginError(f"Mend or uninstall {owner}: there is no hook {name!r}{closest(name, self.hooks)}")
        if not implemented:
            hooks = ", ".join(sorted(self.hooks))
            raise PluginError(f"Mend or uninstall {owner}: mark at least one of {hooks} with hookimpl.")
        self.owners[owner.name] = owner

    def offers(self, hook: str, problems_of: Callable[[object], Iterator[str]]) -> Iterator[tuple[_Owner, Any]]:
        """What each plugin returns from ``hook``, with its owner; PluginError if something is amiss."""
        # One plugin at a time, not pluggy's combined call, so that a failure and a name have an owner.
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            owner = self.owners[implementation.plugin_name]
            with _blamed(owner, hook):
                returned = implementation.function()
                items = returned.items() if isinstance(returned, Mapping) else returned
                offered = list(items) if isinstance(items, Iterable) else None
            if offered is None:
                raise PluginError(f"Mend or uninstall {owner}: {hook} returned {returned!r}, not a list.")
            for item in offered:
                if problems := list(problems_of(item)):
                    told = ", ".join(problems)
                    raise PluginError(f"Mend or uninstall {owner}: {hook} offers {item!r}, which {told}.")
                yield owner, item


# ---------------------------------------------------------------------- what they offer


def _pass_problems(offered: object) -> Iterator[str]:
    if not (isinstance(offered, type) and issubclass(offered, Pass)):
        yield "is not a subclass of Pass"
        return
    if inspect.isabstract(offered):
        yield "does not define run"
    parameters = vars(offered).get("__dataclass_params__")  # its own: a base class that is one does not count
    if parameters is None or not parameters.frozen:
        yield "is not a frozen dataclass (decorate it with @dataclass(frozen=True))"
    else:
        declared = {"name", "stage", "exact", "requires"}
        fields = sorted(declared & {option.name for option in dataclasses.fields(offered)})  # type: ignore[arg-type]
        if fields:
            yield f"takes {' and '.join(fields)} for options (annotate with ClassVar)"
    yield from _name_problems(offered)
    if not isinstance(getattr(offered, "stage", None), Stage):
        yield f"has no stage (one of {', '.join(f'Stage.{stage.name}' for stage in Stage)})"


def _backend_problems(offered: object) -> Iterator[str]:
    if isinstance(offered, type) and issubclass(offered, Backend):
        yield "is a class (offer an instance of it)"
    elif not isinstance(offered, Backend):
        yield "is not a Backend"
    else:
        yield from _name_problems(offered)


def _name_problems(offered: object) -> Iterator[str]:
    name = getattr(offered, "name", None)
    if not isinstance(name, str):
        yield "has no name"
    elif not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        yield f"has the name {name!r} (write it like 'quantize-int8')"


def _path_problems(offered: object) -> Iterator[str]:
    if not isinstance(offered, Path):
        yield "is not a Path"
    elif offered.is_dir() and not any(offered.glob("*.toml")):
        yield "is a folder without a .toml file"


def _rule_problems(offered: object) -> Iterator[str]:
    if not (isinstance(offered, tuple) and len(offered) == 2):
        yield "is no pair of an op and its rule (return a dict)"
        return
    op, rule = offered
    if not isinstance(op, torch._ops.OpOverloadPacket):
        yield "is not for an op with all its overloads (such as torch.ops.aten.conv2d)"
    if not callable(rule):
        yield "has no function for a rule"


def _profiles(paths: Iterable[tuple[_Owner, Path]]) -> Iterator[tuple[_Owner, HardwareProfile]]:
    for owner, path in paths:
        with _blamed(owner, "reading its profiles"):
            profiles = load_profiles(path) if path.is_dir() else (load_profile(path),)
        for profile in profiles:
            yield owner, profile
