"""Random numbers of a training: one stream for the data, one for the model, both from the seed alone.

What a seed and a position lead to, no checkpoint has to hold: the data stream starts anew in every epoch, that of the
model in every step. So training continues where it was killed with the numbers it would have drawn, and two runs of
the same seed see the same batches, whatever their models draw for dropout.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from planish.compiler.program import Program
from planish.compiler.training_data import Batch, TrainingData


@contextmanager
def generators_kept(data: TrainingData) -> Iterator[None]:
    """Give the global generators, and those of the loader, their states back at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    own = [(generator, generator.get_state()) for generator in data.generators()]
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in own:
            generator.set_state(state)


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed what the model draws from. Processes draw different dropout for their different rows."""
    mixed = _mixed(seed, step, process)
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed takes 70 us: it asks every kind of device
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(mixed)


def read_epoch(data: TrainingData, program: Program, seed: int, epoch: int, skip: int) -> Iterator[Batch]:
    """The batches of one epoch from number ``skip`` on. Those before it are read and dropped.

    numpy's and Python's generators are the data's alone; torch's is shared with the model, so it changes hands.
    """
    start = _mixed(seed, epoch, -1)
    if hasattr(data.source, "set_epoch"):
        data.source.set_epoch(epoch)
    for generator in data.generators():
        generator.manual_seed(start)
    random.seed(start)
    np.random.seed(start % 2**32)
    state = torch.Generator().manual_seed(start).get_state()
    batches = data.batches(program)
    index = 0
    while True:
        torch.set_rng_state(state)
        batch = next(batches, None)
        state = torch.get_rng_state()
        if batch is None:
            return
        if index >= skip:
            yield batch
        index += 1


def _mixed(seed: int, position: int, process: int) -> int:
    """A number of its own for each of its arguments (in 63 bits)."""
    return (seed * 6364136223846793005 + position * 1442695040888963407 + (process + 2) * 3935559000370003845) % 2**63
