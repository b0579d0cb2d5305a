from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import planish
from planish.compiler import cli_models
from planish.compiler.plan import Plan
from planish.compiler.program import Program
from planish.compiler.report import Report
from tests.compiler.command_line import TARGET, planish_says, refusal

# ---------------------------------------------------------------------- compile


def test_compile_passes_on_what_the_options_say(compiled: Path) -> None:
    report = Report.load(compiled / "report.json")
    assert (report.model, report.target) == ("Net", TARGET)
    assert report.baseline is not None and report.baseline.metric is not None
    (step,) = [step for step in report.steps if step.compression == "quantize-int8"]
    assert step.options == {"calibrator": "minmax", "samples": 8, "bias_samples": 8, "keep_float": ["second"]}
    assert step.reason == "Requested."


def test_what_the_users_code_prints_stays_out_of_the_json(user_folder: Path) -> None:
    (user_folder / "loud.py").write_text(
        "print('imported')\nfrom user import net\ndef model():\n    print('called')\n    return net"
    )
    out, err = planish_says("check", "loud.py:model", "-t", "x86-avx2", "--json")
    assert json.loads(out)["target"] == "x86-avx2"
    assert "imported\ncalled" in err


def test_a_file_is_imported_once_and_one_of_the_same_name_in_another_folder_is_another(tmp_path: Path) -> None:
    files = [tmp_path / folder / "same.py" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text(f"token = [{str(file)!r}]")
    tokens = [cli_models.find(f"{file}:token", "it") for file in files]
    assert tokens == [[str(file)] for file in files]
    assert cli_models.find(f"{files[0]}:token", "it") is tokens[0]


def test_compile_prints_the_report_and_where_the_artifact_is(user_folder: Path) -> None:
    out, _ = planish_says(
        "compile", "user:net", "-t", TARGET, "--inputs", "three.npy", "--no-compression", "-o", "float"
    )
    assert "Notes" in out and "baseline" in out and "float." in out
    assert planish.load(user_folder / "float").run(torch.ones(5, 16))["scores"].shape == (5, 4)


def test_a_saved_program_is_compiled(user_folder: Path) -> None:
    program = cli_models.load_model("user.py:program")
    assert isinstance(program, Program)
    program.save(user_folder / "net.planish")
    out, _ = planish_says("compile", "net.planish", "-t", TARGET, "--no-compression", "-o", "from-program", "--json")
    assert json.loads(out)["report"]["model"] == "program"


def test_a_plan_is_printed_saved_and_replayed(user_folder: Path) -> None:
    arguments = ("plan", "user.py:Net", "-t", TARGET, "--inputs", "rows.npy")
    document = json.loads(planish_says(*arguments, "--output", "plan.toml", "--json")[0])
    saved = Plan.load(user_folder / "plan.toml")
    assert [entry["name"] for entry in document["passes"]] == [step.compression.name for step in saved]
    shown = planish_says(*arguments)[0]
    assert [step.compression.name for step in saved if step.compression.name not in shown] == []
    replayed = planish_says("compile", "user.py:Net", "-t", TARGET, "--inputs", "rows.npy", "--plan", "plan.toml",
                            "-o", "replayed", "--json")[0]  # fmt: skip
    ran = [step["compression"] for step in json.loads(replayed)["report"]["steps"]]
    assert set(ran) >= {step.compression.name for step in saved}


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("user.py:net", "-t", "t44"), "did you mean 't4'"),
        (("user.py:nett", "-t", TARGET), "has no 'nett'; did you mean 'net'"),
        (("user.py", "-t", TARGET), "FILE.py:NAME or MODULE:NAME, not 'user.py'"),
        (("missing.py:net", "-t", TARGET), "there is no missing.py"),
        (("no_such_module:net", "-t", TARGET), "no module 'no_such_module'"),
        (("user.py:number", "-t", TARGET), "user.py:number is of type int"),
        (("user.py:not_a_model", "-t", TARGET), "not int"),
        (("user.py:raises", "-t", TARGET), "calling user.py:raises raised KeyError: 'weights are not there'"),
        (("weights.pt2", "-t", TARGET), "torch.export.load can run code"),
        (("weights.safetensors", "-t", TARGET), "holds weights and no model"),
        (("damaged.planish", "-t", TARGET), "damaged.planish"),
        (("user.py:net", "-t", TARGET, "--calibration", "user.py:nan"), "NaN"),
        (("user.py:net", "-t", TARGET, "--calibration", "user.py:nothing"), "empty"),
        (("user.py:net", "-t", TARGET, "--calibration", "user.py:number"), "iterable of batches"),
        (("user.py:net", "-t", TARGET, "--calibration", "objects.npy"), "cannot be read"),
        (("user.py:net", "-t", TARGET, "--calibration", "uneven.npz"), "0: 40, 1: 3"),
        (("user.py:net", "-t", TARGET, "--inputs", "three.npy", "--metric", "user.py:number"), "is of type int"),
        (("user.py:net", "-t", TARGET, "--inputs", "three.npy", "--metric", "user.py:failing_metric"), "no labels"),
        (("user.py:net", "-t", TARGET, "--backend", "onyx"), "did you mean 'onnx'"),
        (("user.py:net", "-t", TARGET, "--pass", "quantise-int8"), "did you mean 'quantize-int8'"),
        (("user.py:net", "-t", TARGET, "--pass", "quantize-int8:sample=3"), "did you mean 'samples'"),
        (("user.py:net", "-t", TARGET, "--pass", "quantize-int8:samples=many"), "valid integer"),
        (("user.py:net", "-t", TARGET, "--pass", "quantize-int8:samples"), "key=value"),
        (("user.py:net", "-t", TARGET, "--no-compression", "--plan", "p.toml"), "one of --plan and --no-compression"),
        (("user.py:net", "-t", TARGET, "--plan", "p.toml"), "p.toml cannot be read"),
        (("user.py:net", "-t", TARGET, "--budget-size-mb", "-1"), "at least 0"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence_and_writes_nothing(
    user_folder: Path, arguments: tuple[str, ...], told: str
) -> None:
    assert told in refusal("compile", *arguments, "-o", "out")


def test_an_output_folder_that_is_no_artifact_is_left_alone(user_folder: Path) -> None:
    precious = user_folder / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    arguments = ("compile", "user.py:net", "-t", TARGET, "--inputs", "three.npy", "--no-compression", "-o", precious)
    assert "is no artifact of planish" in refusal(*arguments)
    assert [path.read_text() for path in precious.iterdir()] == ["years"]


def test_an_earlier_artifact_survives_a_compilation_that_fails(compiled: Path) -> None:
    before = {path.name: path.read_bytes() for path in compiled.iterdir()}
    arguments = ("compile", "user.py:net", "-t", TARGET, "--inputs", "three.npy", "--metric", "user.py:failing_metric")
    assert "no labels" in refusal(*arguments, "-o", compiled)
    assert {path.name: path.read_bytes() for path in compiled.iterdir()} == before


# ---------------------------------------------------------------------- check


def test_check_ends_with_one_and_names_op_and_source_where_the_target_cannot_take_the_model(user_folder: Path) -> None:
    out, _ = planish_says("check", "user.py:complex_net", "-t", TARGET, "--json", code=1)
    errors = [finding for finding in json.loads(out)["findings"] if finding["severity"] == "error"]
    assert any("fft" in finding["op"] for finding in errors)
    shown, _ = planish_says("check", "user.py:complex_net", "-t", TARGET, code=1)
    assert errors[0]["op"] in shown and "error" in shown


def test_check_of_a_model_that_fits_ends_with_zero(user_folder: Path) -> None:
    document = json.loads(planish_says("check", "user.py:net", "-t", "x86-avx2", "--json")[0])
    assert document == {"target": "x86-avx2", "findings": []}


# ---------------------------------------------------------------------- arrays


def test_the_rows_of_a_file_become_batches_and_none_is_lost(user_folder: Path) -> None:
    rows = torch.from_numpy(np.load(user_folder / "rows.npy"))
    plain = cli_models.load_calibration("rows.npy")
    named = cli_models.load_calibration("named.npz")
    positional = cli_models.load_calibration("positional.npz")
    for batches in (list(plain), [batch["x"] for batch in named], [batch for (batch,) in positional]):
        assert len(batches) > 1
        assert torch.equal(torch.cat(batches), rows)
