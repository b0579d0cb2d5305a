"""Damage to a shipped profile is reported with file, line and field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from planish.compiler.errors import UserError
from planish.compiler.hardware import load_profile

FILES = sorted((Path(__file__).parents[2] / "hwprofiles").glob("*.toml"))

KEY = re.compile(r"([a-z0-9_]+) = ")
# Tables whose keys are free (dtypes, program names, source names) and not fields.
FREE_KEYS = (
    "[units.peak_gops]", "[channel_alignment]", "[kernel_overhead_us]", "[half_rate_channels]", "[sources]",
)  # fmt: skip
OPTIONAL = {
    "aliases",
    "notes",
    "cores",
    "cache_kb",
    "weight_only",
    "sparsity",
    "min_channels",
    "sparse_min_channels",
    "opset",
    "versions",
}


def keys_by_line(path: Path) -> Iterator[tuple[int, str, int]]:
    """(line, key, line of its table's header) of each field of a profile; 1 for the top level."""
    header, header_line = "", 1
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("["):
            header, header_line = line, number
        elif (key := KEY.match(line)) and header not in FREE_KEYS:
            yield number, key[1], header_line


def edited(path: Path, folder: Path, line: int, old: str, new: str) -> Path:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    copy = folder / path.name
    copy.write_text("".join(lines), encoding="utf-8")
    return copy


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_profile(path)
    return str(raised.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_renamed_field_is_reported_with_file_line_and_field(path: Path, tmp_path: Path) -> None:
    renamed = 0
    for line, key, _ in keys_by_line(path):
        copy = edited(path, tmp_path, line, f"{key} =", f"{key}x =")
        assert re.search(
            rf"{re.escape(str(copy))}:{line}: (\S+\.)?{key}x: no field of that name; did you mean '{key}'",
            error_of(copy),
        )
        renamed += 1
    assert renamed >= 12


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_deleted_field_is_reported_with_file_line_and_field(path: Path, tmp_path: Path) -> None:
    deleted = 0
    for line, key, header_line in keys_by_line(path):
        whole_line = path.read_text(encoding="utf-8").splitlines(keepends=True)[line - 1]
        if key in OPTIONAL:
            continue
        copy = edited(path, tmp_path, line, whole_line, "")
        assert re.search(
            rf"{re.escape(str(copy))}:{header_line}: (\S+\.)?{key}: is missing: add {key} = ", error_of(copy)
        )
        deleted += 1
    assert deleted >= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("field", "wrong"),
    [("size_mb", "size_gb"), ("bandwidth_gb_s", "bandwidth_mb_s"), ("peak_gops", "peak_tops")],
)
def test_a_wrong_unit_names_the_field_that_is_meant(path: Path, field: str, wrong: str, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    line = text[: text.index(field)].count("\n") + 1
    copy = edited(path, tmp_path, line, field, wrong)
    assert re.search(rf"{path.name}:{line}: \S+\.{wrong}: no field .* did you mean '{field}'", error_of(copy))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("table", ["memory", "support"])
def test_a_misspelt_table_is_reported_as_unknown_and_as_missing(path: Path, table: str, tmp_path: Path) -> None:
    header = path.read_text(encoding="utf-8").splitlines().index(f"[{table}]") + 1
    copy = edited(path, tmp_path, header, f"[{table}]", f"[{table}s]")
    message = error_of(copy)
    assert f"{copy}:{header}: {table}s: no field of that name; did you mean '{table}'" in message
    assert f"{copy}:1: {table}: is missing: add the table {table} with " in message
