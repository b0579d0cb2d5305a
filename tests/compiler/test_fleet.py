from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import planish
from planish.backends.to_onnx.backend import OnnxBackend
from planish.compiler.contracts import Context, Pass
from planish.compiler.errors import LoweringError, UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program
from planish.compiler.report import Report
from tests.compiler.command_line import planish_says
from tests.compiler.fakes import FakeBackend, Scale

ORINS = ("jetson-agx-orin-64", "jetson-orin-nx-8")
ran: list[str] = []
"""The targets that a Reads pass ran for."""


@dataclass(frozen=True)
class Reads(Scale):
    """Reads one field of the profile, or the scheme."""

    name: ClassVar[str] = "reads"
    field: str = "vendor"

    def run(self, program: Program, context: Context) -> Program:
        ran.append(object.__getattribute__(context.profile, "_record").name)
        if self.field == "scheme":
            assert context.scheme is None or context.scheme.ops
        elif self.field == "copy":
            context.profile.model_copy(update={"title": "another"})
        elif self.field:
            getattr(context.profile, self.field)
        context.notes.append("a note")
        return super().run(program, context)


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 96, 3), nn.BatchNorm2d(96), nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm(self.conv(x)).relu().mean((2, 3))
        result: Tensor = self.head(seen)
        return result


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def rows() -> list[Tensor]:
    return [*torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(8)]


def tensors(program: Program) -> list[Tensor]:
    return [value for _, value in sorted(program.state_dict().items())]


# ---------------------------------------------------------------------- what is done once


@pytest.mark.parametrize(
    ("field", "times"),
    [("", 1), ("vendor", 1), ("title", 2), ("copy", 2), ("scheme", 1)],
)
def test_a_pass_runs_once_for_targets_in_which_nothing_differs_that_it_reads(net: Net, field: str, times: int) -> None:
    fleet = planish.compile(net, targets=ORINS, calibration=rows(), passes=[Reads(field=field)])
    assert ran == list(ORINS[:times]) and [*fleet] == [*ORINS]
    step = next(step for step in fleet[ORINS[1]].report.steps if step.compression == "reads")
    first, last = step.notes[0], step.notes[-1]
    assert first == "a note"
    if times == 1:
        assert last == f"Run once, for {ORINS[0]}: nothing that it reads differs."
        assert fleet.reused[ORINS[1]]["reads"] == ORINS[0]
    else:
        assert last.startswith(f"Run anew: not all that it reads is as for {ORINS[0]} (profile.")
        assert "reads" not in fleet.reused.get(ORINS[1], {})


def test_the_scheme_is_compared_where_it_is_read(net: Net) -> None:
    targets = ("t4", "galaxy-s24-npu")  # signed and unsigned activations
    planish.compile(net, targets=targets, calibration=rows(), passes=[Reads(field="scheme")], backend=None)
    assert ran == [*targets]


def test_a_pass_with_other_options_and_one_on_another_program_run_anew(net: Net) -> None:
    fleet = planish.compile(net, targets=ORINS, calibration=rows(), passes=[Reads(field=""), Reads(field="")])
    assert ran == [ORINS[0], ORINS[0]], "the second one works on what the first one made"
    ran.clear()
    planish.compile(
        net, targets=ORINS, calibration=rows(), passes=[Reads(field="", factor=0.5), Reads(field="", factor=0.25)]
    )
    assert ran == [ORINS[0], ORINS[0]]
    assert len(fleet) == 2


def test_each_target_gets_what_it_would_get_alone(net: Net, tmp_path: Path) -> None:
    targets = ("jetson-orin-nx-8", "raspberry-pi-5", "t4")
    passes: list[Pass] = [planish.PruneChannels(0.3), planish.QuantizeInt8(samples=16)]
    fleet = planish.compile(net, targets=targets, calibration=rows(), passes=passes, output=tmp_path)
    assert not fleet.failures
    for target in targets:
        alone = planish.compile(net, target, calibration=rows(), passes=passes)
        ours, theirs = tensors(fleet[target].program), tensors(alone.program)
        assert len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
        assert [file.sha256 for file in fleet[target].artifact.manifest.files.values()] == [
            file.sha256 for file in alone.artifact.manifest.files.values()
        ]
        assert planish.load(tmp_path / target).run(rows()[0][:1]).shape == (1, 4)
        assert Report.load(tmp_path / target / "report.json").target == target
    assert fleet.reused["t4"]["quantize-int8"] == "jetson-orin-nx-8", "both quantize as TensorRT does"
    count = len(fleet.reused["t4"])
    assert f"t4 takes over {count} of jetson-orin-nx-8, of its 4 passes" in str(fleet)


class Shuffling:
    """Other rows each time it is read, as a DataLoader that shuffles."""

    def __init__(self) -> None:
        self.times = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.times += 1
        generator = torch.Generator().manual_seed(self.times)
        for _ in range(3):
            yield torch.randn(8, 3, 8, 8, generator=generator)


def test_calibration_rows_are_read_once(net: Net) -> None:
    data = Shuffling()
    passes = [planish.QuantizeInt8(samples=16)]
    planish.compile(net, targets=["t4", "raspberry-pi-5"], calibration=data, passes=passes)
    assert data.times == 1


@pytest.mark.slow
def test_training_runs_once_for_targets_of_several_backends(net: Net) -> None:
    torch.manual_seed(0)
    train = [(torch.randn(8, 3, 8, 8), torch.randint(4, (8,))) for _ in range(2)]
    passes = [planish.Distill(inner=(Reads(field=""),), steps=2)]
    fleet = planish.compile(
        net, targets=["t4", "raspberry-pi-5", "iphone-15"], calibration=rows(), train=train, passes=passes
    )
    assert ran == ["t4"] and [*fleet] == ["t4", "raspberry-pi-5", "iphone-15"]
    assert fleet.reused["iphone-15"]["distill"] == "t4"


# ---------------------------------------------------------------------- what fails


def test_a_target_that_fails_takes_no_other_with_it_and_is_told(net: Net, tmp_path: Path) -> None:
    class Selective(OnnxBackend):
        def lower(self, program: Program, profile: HardwareProfile, folder: Path) -> Any:
            if profile.name == "t4":
                raise LoweringError("No such op on a T4", component="selective")
            return super().lower(program, profile, folder)

    targets = ["t4", *ORINS]
    fleet = planish.compile(net, targets=targets, calibration=rows(), passes=[], backend=Selective(), output=tmp_path)
    assert [*fleet] == [*ORINS] and "t4" not in fleet and len(fleet) == 2
    with pytest.raises(LoweringError, match="No such op on a T4"):
        fleet["t4"]
    assert "t4 failed: LoweringError: No such op on a T4" in str(fleet)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ORINS)


def test_a_target_that_cannot_take_the_pass_fails_alone(net: Net) -> None:
    class Floats(FakeBackend):
        def scheme(self, profile: HardwareProfile) -> Any:
            return OnnxBackend().scheme(profile) if profile.name == "x86-avx2" else None

    passes = [planish.QuantizeInt8(samples=8)]
    fleet = planish.compile(net, targets=["t4", "x86-avx2"], calibration=rows(), passes=passes, backend=Floats())
    assert [*fleet] == ["x86-avx2"] and "runs no INT8" in str(fleet.failures["t4"])


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if bool(x.sum() > 0) else -x


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"targets": ["t4", "t5"]}, "there is no 't5'"),
        ({"targets": ["t4", "tesla-t4"]}, "t4 is there 2 times"),
        ({"targets": []}, "at least one target"),
        ({"targets": "t4"}, "Pass a list as targets="),
        ({"target": "t4"}, "either target, one device, or targets"),
        ({"backend": "onyx"}, "did you mean 'onnx'"),
        ({"calibration": []}, "at least one batch"),
        ({"calibration": [torch.full((4, 3, 8, 8), torch.nan)], "example_inputs": None}, "NaN"),
        ({"model": Untraceable()}, "cannot be traced"),
    ],
)
def test_what_is_wrong_for_all_targets_is_raised_at_once(net: Net, change: dict[str, Any], sentence: str) -> None:
    options: dict[str, Any] = {
        "model": net, "targets": ["t4", "x86-avx2"], "example_inputs": torch.randn(2, 3, 8, 8), "passes": [], **change,
    }  # fmt: skip
    with pytest.raises(UserError, match=sentence):
        planish.compile(options.pop("model"), **options)


def test_data_that_breaks_off_is_told_for_every_target_that_reads_it(net: Net) -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.randn(4, 3, 8, 8)
        raise OSError("disk gone")

    class Data:
        def __iter__(self) -> Iterator[Tensor]:
            return batches()

    targets = ["t4", "raspberry-pi-5"]
    fleet = planish.compile(net, targets=targets, calibration=Data(), passes=[planish.QuantizeInt8()])
    assert [*fleet.failures] == targets
    assert all("disk gone" in str(failure) for failure in fleet.failures.values())


# ---------------------------------------------------------------------- the command


def test_the_command_takes_several_targets_and_ends_with_the_code_of_the_first_that_failed(
    user_folder: Path,
) -> None:
    arguments = ("compile", "user:net", "-t", "t4", "-t", "raspberry-pi-5", "--inputs", "three.npy", "-o", "out")
    document = json.loads(planish_says(*arguments, "--no-compression", "--json")[0])
    assert [*document["targets"]] == ["t4", "raspberry-pi-5"] and document["failures"] == {}
    assert document["targets"]["t4"]["report"]["target"] == "t4"
    assert (user_folder / "out/raspberry-pi-5/model.tflite").is_file()
    told, _ = planish_says(*arguments, "--pass", "quantize-int8:keep_float=*", code=5)
    assert "t4 failed: PassError: Leave this pass out" in " ".join(told.split())
