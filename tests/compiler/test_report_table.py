from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from planish.compiler.report import Report
from planish.compiler.report_table import MODULES_NAMED, as_renderable, as_text
from tests.compiler.sample_reports import cost, decision, reports, step, whole_report


def squeezed(text: str) -> str:
    """Without white space, so that where lines break does not matter."""
    return re.sub(r"\s", "", text)


def row(text: str, name: str) -> list[str]:
    """The cells of the row called ``name``, of the table (the first line that starts with it at the margin)."""
    (line,) = [line for line in text.splitlines() if re.match(rf"{re.escape(name)}(\s|$)", line)]
    return line.split()


def section(text: str, title: str) -> str:
    """What is indented under ``title``."""
    _, _, below = text.partition(f"\n{title}\n")
    return below.partition("\n\n")[0]


@given(report=reports, width=st.integers(80, 140))
@settings(max_examples=25)
def test_any_report_fits_the_width_and_has_every_note_and_verdict(report: Report, width: int) -> None:
    text = as_text(report, width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    told = squeezed(text)
    of_steps = [note for step in report.steps for note in step.notes]
    for sentence in [*report.notes, *of_steps, *report.not_planned.values()]:
        assert squeezed(sentence) in told
    for one in report.steps:
        assert squeezed(f"{one.reason} {one.verdict}") in told


@given(report=reports)
@settings(max_examples=10)
def test_what_looks_like_markup_is_shown_as_it_is(report: Report) -> None:
    report.notes = ["The size is [bold]3[/bold] x [red]224, :smile: [/]."]
    assert squeezed(report.notes[0]) in squeezed(as_text(report))


def test_the_notes_come_before_every_figure_of_the_table() -> None:
    text = as_text(whole_report())
    assert text.index("ResNet") < text.index("Budget not met") < text.index("baseline")


@pytest.mark.parametrize("width", [80, 140])
def test_each_row_has_the_figures_of_its_step(width: int) -> None:
    text = as_text(whole_report(), width)
    assert row(text, "baseline") == ["baseline", "40", "1,820", "12", "0.7500"]
    assert row(text, "fold-batch-norm") == ["fold-batch-norm", "exact", "1.5", "613"]
    assert row(text, "prune-channels") == [
        "prune-channels", "kept", "20", "1,820", "8", "1.50x", "0.7400", "1.5", "613",
    ]  # fmt: skip
    assert row(text, "sparsify") == ["sparsify", "undone", "8", "1,820", "4.4", "0.91x", "0.5000", "1.5", "613"]


def test_the_speed_of_the_result_is_the_product_of_the_kept_steps_not_a_quotient_across_runs() -> None:
    report = whole_report()
    text = as_text(report)
    product = (12 / 8) * (10 / 4)
    assert row(text, "result") == ["result", "8", "1,820", "4", f"{product:.2f}x", "0.7100"]
    assert text.splitlines()[1] == f"{product:.2f}x as fast (measured), 0.20 of the size, metric 0.7500 -> 0.7100"


def test_measured_and_estimated_latencies_stand_in_columns_of_their_own() -> None:
    report = Report(
        model="Net", target="t", backend="b", baseline=cost(4, 2.0, source="estimated"), result=cost(4, 3.0),
        steps=[step("shrink", "kept", cost(4, 2.0, source="estimated"), cost(4, 3.0))],
    )  # fmt: skip
    lines = as_text(report).splitlines()
    (header,) = [line for line in lines if "measured" in line and "estimated" in line]
    measured, estimated = (header.index(word) + len(word) for word in ("measured", "estimated"))
    (baseline,) = [line for line in lines if line.startswith("baseline")]
    (shrunk,) = [line for line in lines if line.startswith("shrink")]
    assert (baseline[estimated - 1], shrunk[measured - 1]) == ("2", "3")
    assert "as fast" not in "\n".join(lines) and "x" not in shrunk.removeprefix("shrink")


def test_what_runs_in_float_is_told_with_module_and_reason() -> None:
    told = section(as_text(whole_report()), "What the runtime does otherwise than planned")
    assert "aten.conv2d in layers.0" in told and "dequantized" in told


def test_decisions_are_folded_by_reason_with_counts() -> None:
    told = section(as_text(whole_report()), "Decisions of quantize-int8")
    assert " ".join(told.split()) == (
        "7 float too few channels aten.conv2d in layers.0, aten.conv2d in layers.1, aten.conv2d in layers.2, "
        f"aten.conv2d in layers.3 and {7 - MODULES_NAMED} more 1 float kept float on request aten.linear in head"
    )


def test_what_stays_float_comes_before_what_became_integers() -> None:
    made = [decision(f"layers.{index}", "in integers", "int8") for index in range(9)] + [decision("head", "asked for")]
    report = whole_report()
    report.steps[2].decisions = made
    told = section(as_text(report), "Decisions of quantize-int8")
    assert told.index("asked for") < told.index("in integers")


def test_the_decisions_of_an_undone_pass_are_left_to_the_file() -> None:
    assert "never shown" not in as_text(whole_report())


def test_an_error_of_the_artifact_is_told_in_figures() -> None:
    told = section(as_text(whole_report(), 140), "Artifact against its Program")
    assert "output 0  largest error 0.25 (0.002 of the largest value), SNR 52.3 dB" in told
    assert "99.8% of the values within one quantum of 8 bits" in told


def test_sections_without_content_are_left_out() -> None:
    text = as_text(Report(model="Net", target="t", backend="b", baseline=cost(1, None), result=cost(1, None)))
    for title in ("Notes", "Steps", "Left out", "runtime", "Decisions", "Artifact against", "result", "measured"):
        assert title not in text
    assert row(text, "baseline") == ["baseline", "1", "1,820"]


def test_a_terminal_gets_the_same_words_in_colour() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as captured:
        console.print(as_renderable(whole_report()))
    coloured = captured.get()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "\x1b[32m" in coloured
    assert [line.rstrip() for line in plain.splitlines()] == as_text(whole_report(), 100).splitlines()


def test_str_of_a_report_is_its_table() -> None:
    assert str(whole_report()) == as_text(whole_report())
