"""Options of passes as TOML and JSON hold them, and back."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from planish.compiler.errors import UserError, closest


def plain(value: Any) -> Any:
    """Numbers, strings, lists and tables; None is left out of tables.

    A pass is a table with its name as ``pass``, another dataclass one with its ``kind``. A function is told by its
    name, which the user reads and nothing reads back.
    """
    if hasattr(value, "from_options") and not isinstance(value, type):
        return {"pass": value.name, **value.options()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"kind": kind(type(value)), **fields_of(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)
    return value


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name; those with ``metadata={"saved": False}`` (a model) are left out."""
    saved = [option for option in dataclasses.fields(value) if option.metadata.get("saved", True)]
    values = {option.name: getattr(value, option.name) for option in saved}
    return {name: plain(item) for name, item in values.items() if item is not None}


def kind(of: type) -> str:
    """``soft-targets`` for the class SoftTargets."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", of.__name__).lower()


def restored(of: type, options: Mapping[str, Any], title: str = "") -> dict[str, Any]:
    """The arguments of the dataclass ``of`` from plain ``options``: lists as tuples, tables as dataclasses.

    Raises UserError for an option that ``of`` does not have, with the closest names.
    """
    known = {option.name for option in dataclasses.fields(of)}
    for name in options:
        if name not in known:
            raise UserError(f"{title or kind(of)} has no option {name!r}{closest(name, known)}")
    nested = any(isinstance(item, dict) for value in options.values() for item in (value, *_items(value)))
    hints = typing.get_type_hints(of) if nested else {}
    return {name: _restored(hints.get(name), value) for name, value in options.items()}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _restored(hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(hint, item) for item in value)
    if not isinstance(value, dict):
        return value
    choices = {kind(each): each for each in _dataclasses_in(hint)}
    if not choices:
        return {name: _restored(None, item) for name, item in value.items()}
    name = value.get("kind", next(iter(choices)) if len(choices) == 1 else "")
    if name not in choices:
        raise UserError(f"kind {name!r} is not known{closest(name, choices)}")
    rest = {option: item for option, item in value.items() if option != "kind"}
    return choices[name](**restored(choices[name], rest))


def _dataclasses_in(hint: Any) -> Iterator[type]:
    """The dataclasses that a type hint names, in unions and tuples."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not inspect.isabstract(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _dataclasses_in(argument)
