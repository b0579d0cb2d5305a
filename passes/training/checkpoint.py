"""One safetensors file that training continues from. It is whole or it is not there: written beside, then renamed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.optim import Optimizer

from planish.compiler.errors import UserError
from planish.compiler.options import fields_of
from planish.compiler.program import Program
from planish.passes.training.settings import Training
from planish.passes.training.weights import Tensors, copied

FILE = "training.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by group (``model``, ``average``, ``best``, ``optimizer``) and name, and plain data."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    data: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Replace the checkpoint in ``folder``; the disk has it before the old one goes."""
        folder.mkdir(parents=True, exist_ok=True)
        flat = {f"{group}/{name}": value for group, of in self.tensors.items() for name, value in copied(of).items()}
        beside = folder / f"{FILE}.part"
        safetensors.torch.save_file(flat, beside, metadata={"training": json.dumps(self.data)})
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> Checkpoint | None:
        """What lies in ``folder``, None if nothing does. Raises UserError naming a damaged file."""
        path = folder / FILE
        if not path.exists():
            return None
        groups: dict[str, Tensors] = {}
        try:
            with safetensors.safe_open(path, "pt") as file:
                data = json.loads(file.metadata()["training"])
                for flat in file.keys():  # noqa: SIM118 - it is no mapping
                    group, name = flat.split("/", 1)
                    groups.setdefault(group, {})[name] = file.get_tensor(flat)
        except Exception as failure:  # whatever a damaged file leads to
            raise UserError(f"Remove {path}: the checkpoint cannot be read ({failure}).") from failure
        return cls(groups, data)

    def demand(self, identity: Mapping[str, Any], folder: Path) -> None:
        """Raise UserError, naming what differs, unless this is a checkpoint of the training with that identity."""
        differing = [name for name, value in identity.items() if self.data["identity"].get(name) != value]
        if differing:
            raise UserError(
                f"Give Training(checkpoint=…) another folder: the checkpoint in {folder} is of a training with other "
                f"{', '.join(differing)}."
            )


def identity(program: Program, tensors: Tensors, training: Training, seed: int) -> dict[str, Any]:
    """What has to be the same for a training to be continued: the graph, the weights at the start, the options."""
    digest = hashlib.sha256()
    for name, tensor in sorted(copied(tensors).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    options = fields_of(dataclasses.replace(training, checkpoint=None, checkpoint_every=None, seed=seed))
    code = hashlib.sha256(program.graph_module.code.encode())
    return {**json.loads(json.dumps(options)), "graph": code.hexdigest(), "weights": digest.hexdigest()}


def optimizer_state(optimizer: Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """State of each parameter: its tensors by ``number.key``, and the rest with the options of the groups."""
    held = optimizer.state_dict()
    state = [(number, key, value) for number, of in held["state"].items() for key, value in of.items()]
    tensors = {f"{number}.{key}": value for number, key, value in state if isinstance(value, Tensor)}
    others = [[number, key, value] for number, key, value in state if not isinstance(value, Tensor)]
    return tensors, {"groups": held["param_groups"], "state": others}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    for number, key, value in data["state"]:
        state.setdefault(number, {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": data["groups"]})
