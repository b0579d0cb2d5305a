"""Several processes, started as ``accelerate launch`` starts GPUs (by torchrun), train to the weights of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.conftest import ROOT

WORKER = """
import sys
import safetensors.torch
from accelerate import PartialState
from planish.passes.training.fit import fit
from planish.passes.training.settings import Training
from planish.passes.training.weights import tensors_of
from tests.passes.training.tasks import accuracy, cross_entropy, data, program

training = Training(epochs=3, learning_rate=0.05, precision="fp32", averaging=0.9, accumulation=2, clip_norm=0.5)
start = program(dropout=0.0, norm=False)
trained = fit(start, data(27), cross_entropy, training, metric=accuracy)  # an odd batch, and a last one of three rows
losses = [loss for record in trained.history.records for loss in record.losses.values()]
state = PartialState()
tensors = {**tensors_of(trained.program.graph_module), "processes": torch.tensor(state.num_processes)}
safetensors.torch.save_file({**tensors, "losses": torch.tensor(losses)}, f"{sys.argv[1]}-{state.process_index}")
state.destroy_process_group()
""".replace("import sys", "import sys\nimport torch", 1)


def trained_by(processes: int, folder: Path) -> list[dict[str, torch.Tensor]]:
    """What each process ended with."""
    script = folder / "worker.py"
    script.write_text(WORKER)
    result = folder / f"of-{processes}"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launch, str(script), str(result)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [safetensors.torch.load_file(f"{result}-{process}") for process in range(processes)]


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(tmp_path: Path) -> None:
    (alone,) = trained_by(1, tmp_path)
    first, second = trained_by(2, tmp_path)
    assert [int(run.pop("processes")) for run in (alone, first, second)] == [1, 2, 2]
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)
