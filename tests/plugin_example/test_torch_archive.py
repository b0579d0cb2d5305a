from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import planish_example
import pytest
import torch
from planish_example.round_weights import RoundWeights
from planish_example.torch_archive import FILE, TorchArchive
from torch import Tensor, nn

from planish.compiler.calibration import Calibration
from planish.compiler.contracts import Context, run_checks
from planish.compiler.errors import LoweringError
from planish.compiler.hardware import Host, load_profile
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.signature import Signature
from planish.compiler.trace import trace

BOARD = load_profile(Path(planish_example.__file__).with_name("example-board.toml"))
BACKEND = TorchArchive()


class Nested(nn.Module):
    """Takes a dict, returns a dict with a tuple, one leaf of it a constant; has weights and dropout."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.Dropout(0.5), nn.Linear(width, 8))

    def forward(self, pair: dict[str, Tensor]) -> dict[str, tuple[Tensor, None, Tensor]]:
        y = self.layers(pair["a"])
        return {"both": (y + pair["b"], None, y.relu())}


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.planish_example_test.double(x)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def traced(model: nn.Module) -> Program:
    return trace(model.eval(), Inputs(({"a": torch.randn(2, 8), "b": torch.randn(2, 8)},)))


def lowered(program: Program, folder: Path) -> Path:
    folder.mkdir()
    assert BACKEND.lower(program, BOARD, folder).files == tuple(path.name for path in folder.iterdir())
    return folder


def test_the_artifact_computes_what_the_program_computes_even_of_one_left_in_training(tmp_path: Path) -> None:
    model = Nested()
    program = traced(model)
    folder = lowered(program.fork().train(), tmp_path / "artifact")
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    outputs = BACKEND.load(folder, BOARD, Signature.of(program.graph), {})([a, b])
    expected = [leaf for leaf in model({"a": a, "b": b})["both"] if leaf is not None]
    assert len(outputs) == 2
    for output, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, reference)


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    program = traced(Nested())
    once, again = (lowered(program, tmp_path / name) / FILE for name in ("once", "again"))
    assert once.read_bytes() == again.read_bytes()


def test_rounded_weights_make_the_artifact_smaller(tmp_path: Path) -> None:
    program = traced(Nested(width=512))
    rounded = RoundWeights(mantissa_bits=7).run(program, Context(BOARD, None, Calibration((), "given")))
    plain, smaller = (
        (lowered(each, tmp_path / name) / FILE).stat().st_size
        for name, each in (("plain", program), ("rounded", rounded))
    )
    # 16 of 32 bits are zero; a deflated float of random mantissa cannot shrink by more than a few bits
    assert smaller < 0.7 * plain


def test_an_operator_that_cannot_be_archived_is_found_by_the_check_and_refused(tmp_path: Path) -> None:
    @torch.library.custom_op("planish_example_test::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return 2 * x

    double.register_fake(torch.empty_like)
    program = trace(Doubled(), Inputs((torch.randn(2, 8),)))
    findings = run_checks(program, BACKEND.checks(BOARD))
    assert [finding.node.target for finding in findings] == [torch.ops.planish_example_test.double.default]
    with pytest.raises(LoweringError, match=r"planish_example_test\.double"):
        BACKEND.lower(program, BOARD, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_allowed_program_has_no_findings() -> None:
    assert run_checks(traced(Nested()), BACKEND.checks(BOARD)) == []


@pytest.mark.parametrize(
    ("host", "is_the_device"),
    [
        (None, False),
        (Host(machine="aarch64", cpu_flags=()), False),
        (Host(machine="x86_64", cpu_flags=("sse2", "warp_drive")), False),
        (Host(machine="x86_64", cpu_flags=("sse2",)), True),
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the expectations are those of an x86-64 machine")
def test_artifacts_are_timed_only_where_this_machine_is_the_device(host: Host | None, is_the_device: bool) -> None:
    profile = BOARD.model_copy(update={"host": host})
    assert (BACKEND.cannot_time(profile) is None) == is_the_device
    assert BACKEND.cannot_run(profile) is None


def test_a_large_program_is_measured_slower_than_a_small_one(tmp_path: Path) -> None:
    folders = [lowered(traced(Nested(width)), tmp_path / str(width)) for width in (8, 100_000)]
    small, large = BACKEND.time(folders, BOARD, [torch.randn(3, 8), torch.randn(3, 8)])
    assert large.median_ms > 3 * small.median_ms > 0
    for latency in (small, large):
        assert (latency.source, latency.batch, latency.threads) == ("measured", 3, 1)
        assert latency.runs >= 10 and latency.p95_ms is not None and latency.p95_ms >= latency.median_ms


def test_an_archive_that_cannot_be_loaded_is_named_by_the_timing(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no zip")
    with pytest.raises(LoweringError, match=f"PyTorch.*cannot run {FILE}"):
        BACKEND.time([tmp_path], BOARD, [torch.randn(3, 8), torch.randn(3, 8)])
