"""The weights of a package, back in the Program that they came from: what is left to prove is the computation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from planish.backends.to_coreml.evaluator import Evaluator
from planish.backends.to_coreml.mil_values import Unevaluated
from planish.compiler.program import Program, set_tensor
from planish.compiler.verify import snr_db

FARTHEST = 0.5
"""Of two weights of one shape, relative to their norm: compressed ones are at 0.3 or less, unrelated ones at 1.4."""


def with_stored_weights(program: Program, path: Path) -> tuple[Program, float]:
    """``program`` with the compressed weights of the package at ``path``, and the lowest SNR of one of them, in dB.

    Raises Unevaluated for a weight of the package that is like none of the Program's: folded, or put in another order.
    """
    stored = program.fork()
    weights = {str(node.target): program.tensor(node) for node in program.graph.nodes if node.op == "get_attr"}
    worst = float("inf")
    for name, value in Evaluator(path).compressed.items():
        if value.dtype not in (torch.float16, torch.float32):
            continue  # on the way to another compressed constant
        near = [
            (_distance(weight, value), owner)
            for owner, weight in weights.items()
            if weight is not None and weight.shape == value.shape and weight.is_floating_point()
        ]
        distance, owner = min(near, default=(float("inf"), ""))
        if distance > FARTHEST:
            raise Unevaluated("constexpr", f"{name} is like no weight of the model")
        weight = weights[owner]
        assert weight is not None
        worst = min(worst, snr_db(weight.detach().double(), value.double()) or float("inf"))
        set_tensor(stored.graph_module, owner, value.to(weight.dtype))
    return stored, worst


def _distance(weight: Tensor, value: Tensor) -> float:
    norm = float(weight.detach().float().norm())
    return float((weight.detach().float() - value.float()).norm()) / norm if norm else 0.0
