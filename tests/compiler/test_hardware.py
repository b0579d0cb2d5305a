"""A profile is checked as a whole when it is read, and every problem is told with file, line and field."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from planish.compiler.errors import UserError
from planish.compiler.hardware import Figure, HardwareProfile, figures, load_profile, load_profiles, peak_gops

BOARD = """\
name = "board"
title = "A board"
vendor = "someone"
backend = "tensorrt"

[host]
machine = "aarch64"
cpu_flags = ["asimd"]

[[units]]
name = "CPU"
kind = "cpu"
[units.peak_gops]
fp32 = { value = 100, source = "datasheet" }

[[units]]
name = "GPU"
kind = "gpu"
cores = { value = 8, estimated = true }
[units.peak_gops]
fp32 = { value = 1000, source = "datasheet" }
int8 = { value = 8000, source = "datasheet" }
int8_sparse = { value = 16000, estimated = true }

[memory]
size_mb = { value = 4096, source = "datasheet" }
bandwidth_gb_s = { value = 51.2, source = "datasheet" }

[support]
dtypes = ["fp32", "int8"]
sparsity = ["2:4"]
dynamic_shapes = true

[channel_alignment]
int8 = { value = 32, estimated = true }

[quantization]
activation_dtype = "int8"
activation_symmetric = true
weight_dtype = "int8"
weight_granularity = "channel"
weight_bits = 8

[sources]
datasheet = "https://example.com/board.pdf"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "board.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, *edits: tuple[str, str]) -> str:
    """The error of BOARD after replacing each old text (found exactly once) by its new text."""
    text = BOARD
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} is not unique in BOARD"
        text = text.replace(old, new)
    with pytest.raises(UserError) as raised:
        load_profile(written(folder, text))
    return str(raised.value)


def line_of(text: str) -> int:
    return BOARD[: BOARD.index(text)].count("\n") + 1


def test_a_profile_is_read_as_written(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, BOARD))
    assert (profile.name, profile.backend, profile.aliases, profile.notes) == ("board", "tensorrt", (), ())
    assert [unit.name for unit in profile.units] == ["CPU", "GPU"]
    assert profile.memory.bandwidth_gb_s == Figure(value=51.2, source="datasheet")
    assert profile.units[1].cores == Figure(value=8, estimated=True)
    assert profile.host is not None
    assert profile.host.cpu_flags == ("asimd",)
    assert profile.quantization is not None
    assert profile.quantization.min_channels is None
    assert profile.runtime.opset is None
    assert profile.runtime.versions == {}


def test_the_peak_rate_is_that_of_the_fastest_unit(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, BOARD))
    assert peak_gops(profile, "fp32") == Figure(value=1000, source="datasheet")
    assert peak_gops(profile, "int8") == Figure(value=8000, source="datasheet")
    assert peak_gops(profile, "fp16") is None


def test_a_profile_cannot_be_changed(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, BOARD))
    with pytest.raises(ValidationError, match="frozen"):
        profile.name = "other"


def test_figures_finds_every_number_of_the_profile_with_its_location(tmp_path: Path) -> None:
    found = {where: figure.value for where, figure in figures(load_profile(written(tmp_path, BOARD)))}
    assert found == {
        ("units", 0, "peak_gops", "fp32"): 100,
        ("units", 1, "cores"): 8,
        ("units", 1, "peak_gops", "fp32"): 1000,
        ("units", 1, "peak_gops", "int8"): 8000,
        ("units", 1, "peak_gops", "int8_sparse"): 16000,
        ("memory", "size_mb"): 4096,
        ("memory", "bandwidth_gb_s"): 51.2,
        ("channel_alignment", "int8"): 32,
    }


def test_profiles_of_a_folder_come_sorted_by_name(tmp_path: Path) -> None:
    for file_name, name in (("a.toml", "zebra"), ("b.toml", "ant"), ("c.txt", "ignored")):
        (tmp_path / file_name).write_text(BOARD.replace('"board"', f'"{name}"'))
    assert [profile.name for profile in load_profiles(tmp_path)] == ["ant", "zebra"]


def test_a_wrong_unit_is_reported_with_file_line_and_field(tmp_path: Path) -> None:
    message = problems(tmp_path, ("size_mb", "size_gb"))
    assert f"{tmp_path / 'board.toml'}:{line_of('size_mb')}: memory.size_gb: no field of that name" in message
    assert "did you mean 'size_mb'?" in message


def test_a_missing_field_is_reported_with_what_to_write(tmp_path: Path) -> None:
    message = problems(tmp_path, ('bandwidth_gb_s = { value = 51.2, source = "datasheet" }\n', ""))
    assert f"board.toml:{line_of('[memory]')}: memory.bandwidth_gb_s: is missing: add bandwidth_gb_s = {{" in message


def test_several_problems_are_listed_one_a_line_from_top_to_bottom(tmp_path: Path) -> None:
    edits = (
        ('kind = "gpu"', 'kind = "gpux"'),
        ("size_mb", "size_gb"),
        ("weight_bits = 8", "weight_bits = 9"),
    )
    first, *rows = problems(tmp_path, *edits).splitlines()
    assert first == f"Mend {tmp_path / 'board.toml'}, 4 problems:"  # size_gb is unknown and size_mb is missing
    lines = [int(row.split("board.toml:")[1].split(":")[0]) for row in rows]
    assert lines == [line_of('kind = "gpu"'), line_of("[memory]"), line_of("size_mb"), line_of("weight_bits")]


@pytest.mark.parametrize(
    ("old", "new", "field", "sentence"),
    [
        ("value = 100,", "value = 0,", "units[0].peak_gops.fp32.value", "greater than 0"),
        ("value = 100,", "value = inf,", "units[0].peak_gops.fp32.value", "finite"),
        ("value = 100,", "value = true,", "units[0].peak_gops.fp32.value", "write a number"),
        ("{ value = 8, estimated = true }", "8", "units[1].cores", "write cores = { value = …"),
        ("{ value = 8, estimated = true }", "{ value = 8 }", "units[1].cores", "exactly one of source"),
        ("8, estimated", '8, source = "datasheet", estimated', "units[1].cores", "exactly one of source"),
        ("8, estimated = true", '8, source = "data"', "units[1].cores", "did you mean 'datasheet'?"),
        ("[sources]", '[sources]\nspare = "https://a.b"', "sources.spare", "no figure uses source 'spare'"),
        ("https://", "http://", "sources.datasheet", "write it like 'https://"),
        (
            'fp32 = { value = 100, source = "datasheet" }\n',
            "",
            "units[0].peak_gops",
            "give at least one rate",
        ),
        ("fp32 = { value = 100,", "fp23 = { value = 100,", "units[0].peak_gops.fp23", "did you mean 'fp32'"),
        ('"fp32", "int8"]', '"fp32", "fp16", "int8"]', "support.dtypes[1]", "'fp16' needs a rate"),
        ('sparsity = ["2:4"]\n', "", "support.sparsity", '"2:4" is missing'),
        (
            "int8_sparse = { value = 16000, estimated = true }\n",
            "",
            "support.sparsity",
            "a rate for int8_sparse",
        ),
        ('"fp32", "int8"]', '"fp32"]', "support.dtypes", '"int8" in support.dtypes is missing'),
        ("value = 32,", "value = 2.5,", "channel_alignment.int8", "whole number of channels"),
        (
            "int8 = { value = 32,",
            "fp32 = { value = 0.5,",
            "channel_alignment.fp32",
            "whole number of channels",
        ),
        (
            "dynamic_shapes = true",
            "dynamic_shapes = true\nsparse_min_channels = { value = 2.5, estimated = true }",
            "support.sparse_min_channels",
            "whole number of channels",
        ),
        (
            "dynamic_shapes = true",
            "dynamic_shapes = true\n"
            "sparse_block = [{ value = 1, estimated = true }, { value = 0.5, estimated = true }]",
            "support.sparse_block",
            "whole number of channels",
        ),
        (
            "[channel_alignment]",
            "[kernel_overhead_us]\nint9 = { value = 1, estimated = true }\n[channel_alignment]",
            "kernel_overhead_us.int9",
            "did you mean 'int8'",
        ),
        ('backend = "tensorrt"', 'backend = "Tensor RT"', "backend", "write it like"),
        ('name = "board"', 'name = "My Board"', "name", "write it like 'jetson-orin-nx-16'"),
        ("dynamic_shapes = true", 'dynamic_shapes = "yes"', "support.dynamic_shapes", "write true or false"),
        ('cpu_flags = ["asimd"]', 'cpu_flags = "asimd"', "host.cpu_flags", "write a list"),
        (
            "[sources]",
            '[runtime]\nversions = { trt = "10" }\n[sources]',
            "runtime.versions.trt",
            "'>=10.3,<10.4'",
        ),
    ],
)
def test_each_rule_names_the_field_and_says_what_to_write(
    tmp_path: Path, old: str, new: str, field: str, sentence: str
) -> None:
    rows = [row for row in problems(tmp_path, (old, new)).splitlines() if f": {field}: " in row]
    assert len(rows) == 1
    assert sentence in rows[0]


def test_an_alignment_for_an_unsupported_dtype_is_a_problem(tmp_path: Path) -> None:
    message = problems(tmp_path, ("int8 = { value = 32,", "bf16 = { value = 32,"))
    assert "channel_alignment.bf16: 'bf16' is not in support.dtypes" in message


def test_a_width_for_two_four_kernels_where_there_are_none_is_a_problem(tmp_path: Path) -> None:
    least = "sparse_min_channels = { value = 256, estimated = true }\n"
    message = problems(
        tmp_path, ('sparsity = ["2:4"]\n', least), ("int8_sparse = { value = 16000, estimated = true }\n", "")
    )
    assert "support.sparse_min_channels: it is about 2:4 kernels, and support.sparsity has no 2:4" in message


def test_int8_without_a_quantization_scheme_is_a_problem(tmp_path: Path) -> None:
    scheme = BOARD[BOARD.index("[quantization]") : BOARD.index("[sources]")]
    assert "the table [quantization] is missing" in problems(tmp_path, (scheme, ""))


def test_a_single_table_where_a_list_of_tables_belongs_is_explained(tmp_path: Path) -> None:
    second_unit = BOARD[BOARD.index('[[units]]\nname = "GPU"') : BOARD.index("[memory]")]
    message = problems(tmp_path, (second_unit, ""), ('[[units]]\nname = "CPU"', '[units]\nname = "CPU"'))
    assert f"board.toml:{line_of('[[units]]')}: units: write a list, […], or a [[list of tables]]" in message


def test_broken_toml_names_the_file_and_the_line(tmp_path: Path) -> None:
    message = problems(tmp_path, ('vendor = "someone"', "vendor = someone"))
    assert message.startswith(f"Mend the TOML of {tmp_path / 'board.toml'}")
    assert f"line {line_of('vendor')}" in message


def test_a_profile_built_in_python_passes_the_same_rules() -> None:
    fields = tomllib.loads(BOARD)
    fields["memory"]["size_mb"]["source"] = "nowhere"
    with pytest.raises(ValidationError, match=r"memory.size_mb: source 'nowhere' is not in \[sources\]"):
        HardwareProfile.model_validate(fields)


def test_a_profile_survives_being_written_and_read(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, BOARD))
    assert HardwareProfile.model_validate_json(profile.model_dump_json()) == profile


@given(value=st.floats(), source=st.none() | st.just("datasheet"), estimated=st.booleans())
def test_a_figure_is_positive_and_either_sourced_or_estimated(
    value: float, source: str | None, estimated: bool
) -> None:
    fits = math.isfinite(value) and value > 0 and (source is None) == estimated
    if fits:
        assert Figure(value=value, source=source, estimated=estimated).value == value
    else:
        with pytest.raises(ValidationError):
            Figure(value=value, source=source, estimated=estimated)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.tuples(st.integers(0, len(BOARD)), st.integers(0, 80)), put=st.binary(max_size=12))
def test_a_damaged_file_is_a_user_error_and_never_a_crash(tmp_path: Path, cut: tuple[int, int], put: bytes) -> None:
    start, length = cut
    path = tmp_path / "damaged.toml"
    path.write_bytes(BOARD.encode()[:start] + put + BOARD.encode()[start + length :])
    try:
        message = f"{path} still holds {load_profile(path).name}"
    except UserError as error:
        message = str(error)
    assert str(path) in message
