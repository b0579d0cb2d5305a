"""Post-training static INT8 quantization, as the backend's scheme says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch

from planish.compiler.contracts import Context, Pass, Proposal, Situation, Stage
from planish.compiler.errors import PassError, UserError, closest
from planish.compiler.hardware import peak_gops
from planish.compiler.inputs import Inputs
from planish.compiler.program import Program
from planish.compiler.shapes import ensure_shapes
from planish.passes.calibrators import CALIBRATORS
from planish.passes.correct_biases import ChannelMeans, correct_biases
from planish.passes.erase_noops import EraseNoOps
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.in_parts import write_in_parts
from planish.passes.insert_qdq import insert
from planish.passes.module_names import demand_known, demand_names
from planish.passes.observe import observe
from planish.passes.placement import place


@dataclass(frozen=True)
class QuantizeInt8(Pass):
    """Weights and activations in 8 bits (arXiv:1712.05877), ranges from calibration data.

    1. ``in_parts``: operators that the backend runs in integers only in parts are written as these.
    2. ``placement``: which values become integers, from the graph and the scheme alone.
    3. ``observe``: what these values look like on calibration data.
    4. ``insert_qdq``: quantize and dequantize nodes in the dialect of PyTorch's PT2E (``quantized_decomposed``),
       INT8 weights, float biases.
    5. ``correct_biases``: biases make up for what rounding does to the means of channels.

    ``calibrator``: how ranges are chosen: ``minmax``, ``percentile``, ``mse`` or ``entropy``.
    ``samples``: rows of calibration data that are read at most.
    ``bias_samples``: rows of it, in whole batches, on which biases are corrected; 0: they stay. Two or more, or
        nothing is learnt.
    ``keep_float``: source modules that stay float, by name or pattern (``"head"``, ``"layer1.*"``).
    """

    name: ClassVar[str] = "quantize-int8"
    stage: ClassVar[Stage] = Stage.PRECISION
    requires: ClassVar[tuple[type[Pass], ...]] = (EraseNoOps, FoldBatchNorm)

    calibrator: str = "mse"
    samples: int = 256
    bias_samples: int = 8
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.calibrator not in CALIBRATORS:
            raise UserError(f"{self.name} has no calibrator {self.calibrator!r}{closest(self.calibrator, CALIBRATORS)}")
        demand_names("keep_float", self.keep_float)
        if self.samples < 1:
            raise UserError(f"Give {self.name} at least one sample, not {self.samples}.")
        if self.bias_samples < 0:
            raise UserError(f"Give {self.name} bias_samples a number of rows of at least 0, not {self.bias_samples}.")

    @classmethod
    def propose(cls, situation: Situation) -> Proposal:
        profile, scheme = situation.profile, situation.scheme
        if scheme is None:
            return Proposal(None, f"{profile.title} runs no INT8 through this backend.")
        ensure_shapes(situation.program)
        if not place(situation.program, scheme).weights:
            return Proposal(None, "No layer of this model can run in INT8 there.")
        native = "fp16" if "fp16" in profile.support.dtypes else "fp32"
        integer, real = peak_gops(profile, "int8"), peak_gops(profile, native)
        if integer is None or real is None:
            return Proposal(cls(), "The device runs INT8; its rates are not known.")
        ratio = integer.value / real.value
        rates = f"INT8 at {integer.value:,.0f} GOP/s against {real.value:,.0f} in {native} ({ratio:.1f}x)"
        if ratio > 1:
            return Proposal(cls(), f"{rates}, and a quarter of the bytes of fp32 weights.")
        if situation.budget.size_mb is not None:
            return Proposal(cls(), f"{rates}: smaller, as the budget asks.")
        return Proposal(None, f"{rates}: no faster.")

    def run(self, program: Program, context: Context) -> Program:
        if context.scheme is None:
            raise UserError(f"Choose another target for {self.name}: {context.profile.title} runs no INT8.")
        program = program.fork().eval()
        ensure_shapes(program)
        demand_known("keep_float", self.keep_float, program)
        rows = context.calibration.samples(self.samples)
        for node in write_in_parts(program, context.scheme.in_parts, rows):
            context.decide(node, "float", "its parts are not known: a mask that is computed, or heads that share keys")
        placement = place(program, context.scheme, self.keep_float)
        for node, outcome, reason in placement.decided:
            context.decide(node, outcome, reason)
        if not placement.weights:
            raise PassError("Leave this pass out: no layer of the model can run in INT8 here.", component=self.name)
        batches = self._rows(context)
        first = _first(batches, self.bias_samples)
        means = ChannelMeans(program, len(first))
        with torch.no_grad():
            seen = observe(program, placement.observed(), chain(first, batches), means.see)
            quantized = insert(program, placement, seen, CALIBRATORS[self.calibrator])
            return correct_biases(quantized, means, first)

    def _rows(self, context: Context) -> Iterator[Inputs]:
        read = 0
        for rows in context.calibration.samples(self.samples):
            yield rows
            read += rows.batch_size
            if context.progress:
                context.progress.say(f"{self.name}: {read} rows of calibration data")


def _first(batches: Iterator[Inputs], rows: int) -> list[Inputs]:
    """As many of ``batches``, from the front, as have ``rows`` rows."""
    first: list[Inputs] = []
    while rows > 0 and (batch := next(batches, None)) is not None:
        first.append(batch)
        rows -= batch.batch_size
    return first
