"""Runs the command line, and the code of a user that it is given."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from planish.compiler.cli import app

TARGET = "t4"  # timed on no machine of CI, so that a test takes no time for timing

USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.first, self.second = nn.Linear(16, width), nn.Linear(width, 4)

    def forward(self, x):
        return {"scores": self.second(self.first(x).relu())}


torch.manual_seed(0)
net = Net().eval()
number = 3
rows = [(torch.randn(8, 16), torch.zeros(8)) for _ in range(3)]

def program():
    import planish
    from planish.compiler.inputs import Inputs
    return planish.trace(net, Inputs.of(torch.randn(2, 16)))

def batches():
    return iter(rows)

def not_a_model():
    return 3

def raises():
    raise KeyError("weights are not there")

def nan():
    return [torch.full((8, 16), float("nan"))]

def nothing():
    return []

def metric(run):
    return float(run(torch.ones(2, 16))["scores"].sum())

def failing_metric(run):
    raise RuntimeError("no labels")

def complex_net():
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)
        def forward(self, x):
            return torch.fft.fft(self.layer(x)).angle()
    return Fourier()
"""


def planish_says(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Standard output and standard error of a command that has to end with ``code``."""
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "140"})
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def refusal(*arguments: object, code: int = 2) -> str:
    """The one sentence of an error; nothing on standard output, no traceback, and no artifact in ``out``."""
    before = sorted(Path.cwd().iterdir())
    out, err = planish_says(*arguments, code=code)
    assert out == ""
    assert "Traceback" not in err
    assert sorted(Path.cwd().iterdir()) == before
    return err.strip().splitlines()[-1]
