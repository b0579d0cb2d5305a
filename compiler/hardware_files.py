"""Reads a TOML file into a pydantic model; tells each problem with file, line, field and what to write."""

from __future__ import annotations

import re
import reprlib
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from planish.compiler.errors import UserError, closest

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"({_PART}(?:\s*\.\s*{_PART})*)"
_HEADER = re.compile(rf"\s*(\[\[?)\s*{_DOTTED}\s*\]")
_KEY = re.compile(rf"\s*{_DOTTED}\s*=")

_WRITE = {
    "tuple_type": "a list, […], or a [[list of tables]]",
    "dict_type": "a table",
    "string_type": 'a text, "…"',
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
}


class FieldsError(ValueError):
    """What does not fit between the fields of a model: (location of the field, what to write)."""

    def __init__(self, problems: tuple[tuple[Location, str], ...]) -> None:
        super().__init__("; ".join(f"{dotted(where)}: {what}" for where, what in problems))
        self.problems = problems


def read_model(path: Path, model: type[Model]) -> Model:
    """The TOML file at ``path`` as a ``model``.

    Raises UserError with one line for each problem of the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return model.model_validate(tomllib.loads(text))
    except OSError as error:
        raise UserError(f"Give the path of a readable TOML file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"Save {path} as UTF-8: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"Mend the TOML of {path}: {error}") from error
    except ValidationError as error:
        raise UserError(_describe(path, text, model, error)) from error


def dotted(where: Location) -> str:
    """``("units", 0, "cores")`` -> ``"units[0].cores"``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")


def line_numbers(text: str) -> dict[Location, int]:
    """The line of each table header and each key that starts a line (so none inside inline tables)."""
    lines: dict[Location, int] = {}
    tables_so_far: Counter[Location] = Counter()  # for [[arrays of tables]]
    table: Location = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _in_latest_tables(_parts(header[2]), tables_so_far)
            if header[1] == "[[":
                tables_so_far[table] += 1
                table = (*table, tables_so_far[table] - 1)
            lines[table] = number
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_parts(key[1])), number)
    return lines


def _parts(name: str) -> Location:
    return tuple(part.strip("\"'") for part in re.findall(_PART, name))


def _in_latest_tables(parts: Location, tables_so_far: Mapping[Location, int]) -> Location:
    """``[units.peak_gops]`` belongs to the last ``[[units]]`` above it."""
    table: Location = ()
    for part in parts[:-1]:
        table = (*table, part)
        if tables_so_far.get(table):
            table = (*table, tables_so_far[table] - 1)
    return (*table, *parts[-1:])


def _describe(path: Path, text: str, model: type[BaseModel], error: ValidationError) -> str:
    lines = line_numbers(text)
    problems = _problems(model, error.errors())
    found = sorted((_line(where, lines), dotted(where), what) for where, what in problems)
    rows = [f"  {path}:{line}: {field}: {what}" for line, field, what in found]
    return "\n".join([f"Mend {path}, {len(rows)} problem{'s' * (len(rows) > 1)}:", *rows])


def _line(where: Location, lines: Mapping[Location, int]) -> int:
    while where and where not in lines:
        where = where[:-1]
    return lines.get(where, 1)


def _problems(model: type[BaseModel], errors: Iterable[ErrorDetails]) -> Iterable[tuple[Location, str]]:
    for error in errors:
        where = tuple(part for part in error["loc"] if part != "[key]")  # pydantic's mark for a key
        raised = error.get("ctx", {}).get("error")
        if isinstance(raised, FieldsError):
            yield from ((where + inner, what) for inner, what in raised.problems)
        elif error["type"] == "extra_forbidden":
            fields = _model_at(model, where[:-1]).model_fields
            yield where, f"no field of that name{closest(str(where[-1]), fields)}"
        elif error["type"] == "missing":
            field = _model_at(model, where[:-1]).model_fields[str(where[-1])]
            yield where, f"is missing: add {_example(str(where[-1]), field.annotation)}"
        elif error["type"] == "model_type":
            yield where, f"write {_example(str(where[-1]), _model_at(model, where))}"
        elif error["type"] in _WRITE:
            yield where, f"write {_WRITE[error['type']]}"
        else:
            yield where, str(raised) if raised else f"{error['msg']}, not {reprlib.repr(error['input'])}"


def _model_at(model: type[BaseModel], where: Location) -> type[BaseModel]:
    for part in where:
        if part in model.model_fields:
            model = _model_in(model.model_fields[str(part)].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def _example(name: str, annotation: Any) -> str:
    inner = _model_in(annotation)
    if inner is None:
        written = {str: '"…"', bool: "true", int: "1", float: "1.0"}.get(annotation, '["…"]')
        return f"{name} = {written}"
    if "value" in inner.model_fields:
        return f'{name} = {{ value = …, source = "…" }} or {{ value = …, estimated = true }}'
    required = ", ".join(field for field, info in inner.model_fields.items() if info.is_required())
    return f"the table {name} with {required}"
