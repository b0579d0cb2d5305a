"""Where a problem of a TOML file stands, and what is said when there is no TOML to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from planish.compiler.errors import UserError
from planish.compiler.hardware import Host
from planish.compiler.hardware_files import dotted, line_numbers, read_model


def test_a_file_that_cannot_be_read_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Give the path of a readable TOML file: .*nowhere\.toml"):
        read_model(tmp_path / "nowhere.toml", Host)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b'name = "\xff"')
    with pytest.raises(UserError, match=r"Save .*binary\.toml as UTF-8"):
        read_model(binary, Host)


def test_line_numbers_follow_headers_quoted_keys_and_lists_of_tables() -> None:
    text = 'a = 1\n[t]\n"b c" = 2\n[[l]]\nx = 1\n[l.sub]\ny = 1\n[[l]]\n[l.sub]\ny = [\n  "z = 3",\n]\nq.r = 1\n'
    assert line_numbers(text) == {
        ("a",): 1,
        ("t",): 2,
        ("t", "b c"): 3,
        ("l", 0): 4,
        ("l", 0, "x"): 5,
        ("l", 0, "sub"): 6,
        ("l", 0, "sub", "y"): 7,
        ("l", 1): 8,
        ("l", 1, "sub"): 9,
        ("l", 1, "sub", "y"): 10,
        ("l", 1, "sub", "q", "r"): 13,
    }


def test_a_location_is_written_as_in_the_file() -> None:
    assert dotted(("units", 0, "peak_gops", "int8")) == "units[0].peak_gops.int8"
    assert dotted(("name",)) == "name"


def test_any_table_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text('machine = "aarch64"\ncpu_flags = ["asimd", "asimddp"]\n', encoding="utf-8")
    assert read_model(path, Host) == Host(machine="aarch64", cpu_flags=("asimd", "asimddp"))
