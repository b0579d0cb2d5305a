"""What is found before any work: operators, shapes, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("ai_edge_litert")
import planish
from planish.backends.to_tflite.backend import TfliteBackend
from planish.backends.to_tflite.checks import checks_for
from planish.backends.to_tflite.converter import convert
from planish.backends.to_tflite.devices import (
    EDGE_TPU,
    GPU,
    MICRO,
    NNAPI,
    Subset,
    missing,
    peak_of_activations,
    subset_of,
)
from planish.backends.to_tflite.lowering import lower
from planish.compiler.contracts import run_checks
from planish.compiler.errors import UserError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.inputs import Inputs
from planish.compiler.trace import trace
from tests.backends.to_tflite.nets import Residual, profile
from tests.backends.to_tflite.oracle import traced


class Wave(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.atan2(self.layer(x), x.mean())


class Digamma(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.digamma(x)


def found(model: nn.Module, target: str, *inputs: Tensor) -> list[tuple[str, str, str]]:
    findings = run_checks(traced(model, *inputs), checks_for(profile(target)))
    return [(finding.check.name, finding.check.severity, str(finding)) for finding in findings]


def test_a_plain_net_breaks_no_check_anywhere() -> None:
    for target in ("raspberry-pi-5", "coral-edgetpu", "cortex-m7", "pixel-8"):
        assert found(Residual(), target, torch.randn(1, 3, 16, 16)) == []


def test_an_operator_that_the_edge_tpu_lacks_is_a_warning_with_its_source() -> None:
    ((name, severity, told),) = found(Wave(), "coral-edgetpu", torch.randn(1, 3, 8, 8))
    assert (name, severity) == ("operators-of-the-device", "warning")
    assert "the host's CPU runs it" in told and "aten.atan2" in told
    assert EDGE_TPU.source.startswith("https://")


def test_an_operator_that_tflite_micro_lacks_is_an_error() -> None:
    ((_, severity, told),) = found(Wave(), "cortex-m7", torch.randn(1, 3, 8, 8))
    assert severity == "error" and told.startswith("TFLite Micro has no such operator")
    with pytest.raises(UserError, match="TFLite Micro has no such operator"):
        planish.compile(Wave(), "cortex-m7", torch.randn(1, 3, 8, 8))


def test_activations_that_do_not_fit_a_microcontroller_are_an_error() -> None:
    ((name, severity, told),) = found(Residual(32), "cortex-m7", torch.randn(1, 3, 512, 512))
    assert (name, severity) == ("activations-fit", "error")
    assert "1024 KiB" in told


def test_an_operator_that_cannot_be_written_is_named_with_its_module_before_long_work() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Digamma())
    ((name, _, told),) = found(model, "raspberry-pi-5", torch.randn(1, 4))
    assert name == "lowers-to-tflite" and "aten.digamma in 1" in told


def test_dynamic_shapes_are_named() -> None:
    program = trace(nn.Linear(4, 4), Inputs((torch.randn(2, 4),)))
    (finding,) = run_checks(program, checks_for(profile()))
    assert finding.check.name == "fixed-shapes"


def test_a_device_that_takes_dynamic_shapes_gets_fixed_ones_from_this_backend() -> None:
    result = planish.compile(nn.Linear(4, 4), "x86-avx2", torch.randn(3, 4), passes=[], backend="tflite")
    assert "The tflite backend takes fixed shapes only: the batch is 1." in result.report.notes


def unit_of(kind: str) -> HardwareProfile:
    """A phone whose only unit is of ``kind``."""
    phone = profile("pixel-8")
    return phone.model_copy(update={"units": (phone.units[0].model_copy(update={"kind": kind}),)})


@pytest.mark.parametrize(("kind", "limits"), [("gpu", GPU), ("npu", NNAPI)])
def test_what_a_delegate_does_not_take_is_listed_with_its_source_and_its_share(
    kind: str, limits: Subset, tmp_path: Path
) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.room = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Conv3d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).sign().mean((2, 3))
            return self.last(y) * self.room(x.unsqueeze(1)).sum()

    program, device = traced(Layers(), torch.randn(1, 3, 8, 8)), unit_of(kind)
    findings = run_checks(program, checks_for(device))
    assert {finding.op for finding in findings} >= {"aten.sign", "aten.conv3d"}
    assert all(f.check.severity == "warning" and f.check.source == limits.source for f in findings)
    told = {decision.op: decision.reason for decision in lower(program, device, tmp_path, TfliteBackend()).decisions}
    room, rest = 64 * 3, 64 * 12 + 16
    assert told["aten.sign"].endswith("(0% of the MACs)")
    assert told["aten.conv3d"].startswith(limits.name) and f"({room / (room + rest):.0%} of" in told["aten.conv3d"]


def test_values_of_more_than_four_dimensions_stay_on_the_cpu() -> None:
    made = convert(traced(nn.Flatten(0), torch.randn(1, 2, 3, 4, 5)))
    assert [kind for _, kind in missing(made.graph.operators, GPU)] == ["RESHAPE in 5 dimensions"]


def test_subsets_follow_the_units_of_the_profile() -> None:
    assert subset_of(profile("cortex-m7")) is MICRO
    assert subset_of(profile("coral-edgetpu")) is EDGE_TPU
    assert subset_of(unit_of("gpu")) is GPU and subset_of(unit_of("npu")) is NNAPI
    assert subset_of(profile("raspberry-pi-5")) is None


def test_the_peak_of_activations_is_what_lives_at_once() -> None:
    """[1, 100] twice while the first is read, then 100 and 50 … : input and result of the first layer are the most."""
    model = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 10))
    peak = peak_of_activations(convert(traced(model, torch.randn(1, 100))).graph)
    assert peak.size_bytes == 4 * (100 + 200)
    assert peak_of_activations(convert(traced(model, torch.randn(1, 100))).graph, float_bytes=1).size_bytes == 300
