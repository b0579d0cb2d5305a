"""The hooks of a plugin: each returns what it offers, and is called when a name is first looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pluggy

from planish.compiler.contracts import Backend, Pass
from planish.compiler.coupling.inference import Rule

hookspec = pluggy.HookspecMarker("planish")
hookimpl = pluggy.HookimplMarker("planish")
"""Marks a function of a plugin as the implementation of the hook of that name."""


@hookspec
def planish_passes() -> Iterable[type[Pass]]:  # type: ignore[empty-body]
    """Pass classes: frozen dataclasses with a ``name`` that nobody else owns and a ``stage``."""


@hookspec
def planish_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """Backend instances, with a ``name`` that profiles refer to. Import vendor libraries in their methods."""


@hookspec
def planish_profiles() -> Iterable[Path]:  # type: ignore[empty-body]
    """Paths of hardware profiles: TOML files, or folders of them. hwprofiles/README.md tells the fields."""


@hookspec
def planish_coupling_rules() -> Mapping[Any, Rule]:  # type: ignore[empty-body]
    """How ops couple channels that planish has no rule for: op (``torch.ops.mine.op``, all overloads) -> rule."""
