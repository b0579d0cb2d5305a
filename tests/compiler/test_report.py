from __future__ import annotations

import re
from pathlib import Path

import pydantic
import pytest
from hypothesis import given, settings
from pydantic import BaseModel

from planish.compiler.report import Report, write_atomically
from tests.compiler.sample_reports import reports, whole_report

DOCS = (Path(__file__).parents[2] / "docs" / "report.md").read_text()


def models_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The models that ``model`` is made of, itself included, by name."""
    schema = model.model_json_schema()
    named = {"Report", *schema["$defs"]}
    return {name: getattr(__import__("planish.compiler.report", fromlist=[name]), name) for name in named}


def documented() -> dict[str, list[str]]:
    """Heading -> the fields in the table under it."""
    parts = re.split(r"^## (\w+)$", DOCS, flags=re.MULTILINE)[1:]
    return {
        title: re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def test_the_docs_name_exactly_the_fields_of_each_model_in_order() -> None:
    assert documented() == {name: [*model.model_fields] for name, model in models_of(Report).items()}


def test_the_docs_name_every_value_of_a_field_that_has_few() -> None:
    schemas = Report.model_json_schema()["$defs"].values()
    choices = [
        value for schema in schemas for field in schema["properties"].values() for value in field.get("enum", [])
    ]
    assert choices
    assert [value for value in choices if f"`{value}`" not in DOCS] == []


@given(report=reports)
@settings(max_examples=25)
def test_a_report_survives_json(report: Report) -> None:
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_a_saved_report_is_loaded_again(tmp_path: Path) -> None:
    report = whole_report()
    assert Report.load(report.save(tmp_path / "report.json")) == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="lattency"):
        Report.model_validate_json('{"model": "m", "target": "t", "backend": "b", "lattency": 1}')


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "report.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]
