"""Which facts a pass reads: a stand-in for a profile or a scheme that notes what is asked of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar, cast

from pydantic import BaseModel

Record = TypeVar("Record")
Path = tuple[tuple[str, Any], ...]
"""Steps from a record to a fact: ("field", name), ("item", key), and at the end ("in", item), ("kind", None)
or ("length", None)."""
Facts = dict[Path, Any]

ABSENT = object()
"""The value of a path that another record does not have."""


def watched(record: Record, read: Facts) -> Record:
    """What looks like ``record``, a pydantic model or a dataclass, and puts into ``read`` what it is asked for.

    Whatever is more than reading a field (a method, a comparison, ``dataclasses.replace``) counts as reading all.
    """
    return cast(Record, _wrapped(record, (), read))


def fact(record: object, path: Path) -> Any:
    """What ``record`` has at ``path``."""
    value: Any = record
    try:
        for step, key in path:
            value = _STEPS[step](value, key)
    except (AttributeError, LookupError, TypeError):
        return ABSENT
    return value


def told(path: Path) -> str:
    """``channel_alignment.int8.value``."""
    return ".".join(str(key) for _, key in path if key is not None)


_STEPS = {
    "field": getattr,
    "item": lambda value, key: value[key],
    "in": lambda value, key: key in value,
    "kind": lambda value, _: type(value),
    "length": lambda value, _: len(value),
}


def _wrapped(value: Any, path: Path, read: Facts) -> Any:
    """``value``, or what watches over it where it holds facts of its own."""
    if isinstance(value, BaseModel) or (not path and dataclasses.is_dataclass(value)):
        read[*path, ("kind", None)] = type(value)
        # dataclasses.replace looks for its fields in the type
        known = getattr(type(value), "__dataclass_fields__", None)
        fields = {} if known is None else {"__dataclass_fields__": known}
        return type("_Watched", (_Watched,), fields)(value, path, read)
    if path and type(value) in (dict, tuple) and _holds_models(value):
        return (_Mapping if type(value) is dict else _Row)(value, path, read)
    read[path] = value
    return value


def _holds_models(value: dict[Any, Any] | tuple[Any, ...]) -> bool:
    """Strings and numbers are compared as a whole, but for the question what is in a tuple of strings."""
    items = value.values() if isinstance(value, dict) else value
    return all(isinstance(item, (BaseModel, str)) for item in items)


class _Watched:
    def __init__(self, record: Any, path: Path, read: Facts) -> None:
        self._record, self._path, self._read = record, path, read

    @property  # type: ignore[misc] # isinstance asks for it
    def __class__(self) -> type:
        return type(self._record)

    def __getattr__(self, name: str) -> Any:
        fields = _fields(self._record)
        if name in fields:
            return _wrapped(getattr(self._record, name), (*self._path, ("field", name)), self._read)
        for each in fields:
            self._read[*self._path, ("field", each)] = getattr(self._record, each)
        return getattr(self._record, name)

    def __eq__(self, other: object) -> bool:
        return bool(self.__getattr__("__eq__")(other))

    def __hash__(self) -> int:
        return int(self.__getattr__("__hash__")())

    def __reduce_ex__(self, protocol: Any) -> Any:  # copies are plain ones
        return self.__getattr__("__reduce_ex__")(protocol)

    def __repr__(self) -> str:
        return str(self.__getattr__("__repr__")())


def _fields(record: object) -> list[str]:
    if isinstance(record, BaseModel):
        return [*type(record).model_fields]
    return [field.name for field in dataclasses.fields(cast(Any, record))]


class _Row(tuple[Any, ...]):
    """A tuple whose items are watched. What is not here is asked of a plain copy, and counts as reading all."""

    _path: Path
    _read: Facts

    def __new__(cls, items: tuple[Any, ...], path: Path, read: Facts) -> _Row:
        self = super().__new__(cls, items)
        self._path, self._read = path, read
        return self

    def _all(self) -> tuple[Any, ...]:
        plain = tuple(tuple.__iter__(self))
        self._read[self._path] = plain
        return plain

    def __iter__(self) -> Iterator[Any]:
        self._read[*self._path, ("length", None)] = tuple.__len__(self)
        for index, item in enumerate(tuple.__iter__(self)):
            yield _wrapped(item, (*self._path, ("item", index)), self._read)

    def __contains__(self, item: object) -> bool:
        found = tuple.__contains__(self, item)
        self._read[*self._path, ("in", item)] = found
        return found

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]

    def __add__(self, other: Any) -> Any:
        return self._all() + other

    def __eq__(self, other: object) -> bool:
        return self._all() == other

    def __hash__(self) -> int:
        return hash(self._all())


class _Mapping(dict[Any, Any]):
    """A dict whose items are watched; iterating over it counts as reading all."""

    def __init__(self, items: dict[Any, Any], path: Path, read: Facts) -> None:
        super().__init__(items)
        self._path, self._read = path, read

    def _all(self) -> dict[Any, Any]:
        plain = dict(dict.items(self))
        self._read[self._path] = plain
        return plain

    def __contains__(self, key: object) -> bool:
        found = dict.__contains__(self, key)
        self._read[*self._path, ("in", key)] = found
        return found

    def __getitem__(self, key: Any) -> Any:
        return _wrapped(dict.__getitem__(self, key), (*self._path, ("item", key)), self._read)

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 # it is what get does

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def keys(self) -> Any:
        return self._all().keys()

    def values(self) -> Any:
        return self._all().values()

    def items(self) -> Any:
        return self._all().items()

    def __len__(self) -> int:
        return len(self._all())

    def __eq__(self, other: object) -> bool:
        return self._all() == other
