"""Integer weights alone: a quarter of the bytes, and no calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from planish.compiler.calibration import GIVEN
from planish.compiler.contracts import Context, Pass, Stage
from planish.compiler.errors import PassError, UserError
from planish.compiler.program import Program, source_module
from planish.compiler.scheme import IntegerOp, IntegerType, QuantizationScheme
from planish.compiler.shapes import ensure_shapes
from planish.passes.calibrators import CALIBRATORS
from planish.passes.correct_biases import ChannelMeans, correct_biases
from planish.passes.erase_noops import EraseNoOps
from planish.passes.fold_batch_norm import FoldBatchNorm
from planish.passes.insert_qdq import insert
from planish.passes.module_names import demand_known, demand_names, named
from planish.passes.observe import observe
from planish.passes.placement import Placement
from planish.passes.run_time_scales import quantize_at_run_time


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """INT8 weights, symmetric with a scale for each channel; which ones, the backend's scheme says.

    1. Constant weights become integers with a dequantize node behind them; a weight that several layers share is
       stored once. What quantize-int8 has quantized before stays as it is.
    2. With ``activations="dynamic"``, what these layers read is quantized too, with scales that are chosen anew in
       each call (no calibration): they compute in integers where the backend can.
    3. Where calibration data is given, biases make up for what rounding does to the means of channels
       (``correct_biases``).

    ``activations``: ``float``, or ``dynamic``.
    ``keep_float``: source modules that stay float, by name or pattern (``"head"``, ``"layer1.*"``).
    ``min_values``: weights of fewer values stay float: their scales would cost what they save.
    ``bias_samples``: rows of calibration data on which biases are corrected; 0: they stay.
    """

    name: ClassVar[str] = "quantize-weights"
    stage: ClassVar[Stage] = Stage.PRECISION
    requires: ClassVar[tuple[type[Pass], ...]] = (EraseNoOps, FoldBatchNorm)

    activations: Literal["float", "dynamic"] = "float"
    keep_float: tuple[str, ...] = ()
    min_values: int = 1024
    bias_samples: int = 8

    def __post_init__(self) -> None:
        if self.activations not in ("float", "dynamic"):
            raise UserError(f"Give {self.name} activations='float' or 'dynamic', not {self.activations!r}.")
        demand_names("keep_float", self.keep_float)
        if self.min_values < 0:
            raise UserError(f"Give {self.name} min_values of at least 0, not {self.min_values}.")
        if self.bias_samples < 0:
            raise UserError(f"Give {self.name} bias_samples a number of rows of at least 0, not {self.bias_samples}.")

    def run(self, program: Program, context: Context) -> Program:
        scheme = self._demand_scheme(context)
        program = program.fork().eval()
        ensure_shapes(program)
        demand_known("keep_float", self.keep_float, program)
        placement, reads = Placement(), list[tuple[fx.Node, fx.Node, IntegerType]]()
        for node, op, weight in _weights(program, scheme.stored):
            why_not = self._obstacle(program, node, weight)
            if why_not:
                context.decide(node, "float", why_not)
                continue
            assert isinstance(weight, fx.Node)
            placement.weights[weight, node] = (op.weight_type or scheme.weight, op.weight_axis)
            computing = [*self._read_at_run_time(program, node, weight, scheme)]
            reads += computing
            told = "computes in integers with scales chosen at run time" if computing else "computes in float"
            context.decide(node, "int8" if computing else "int8 weights", told)
        if not placement.weights:
            raise PassError("Leave this pass out: no weight of the model can be stored in INT8.", component=self.name)
        given = context.calibration.origin == GIVEN
        batches = [*context.calibration.samples(self.bias_samples)] if given else []
        means = ChannelMeans(program, len(batches))
        with torch.no_grad():
            if batches:
                observe(program, (), batches, means.see)
            quantize_at_run_time(program, reads)
            stored = insert(program, placement, {}, CALIBRATORS["minmax"])
            return correct_biases(stored, means, batches)

    def _demand_scheme(self, context: Context) -> QuantizationScheme:
        scheme, title = context.scheme, context.profile.title
        if scheme is None or not scheme.stored:
            raise UserError(f"Choose another target for {self.name}: {title} stores no INT8 weights with its backend.")
        if self.activations == "dynamic" and not scheme.at_run_time:
            raise UserError(f"Leave out activations='dynamic': the backend of {title} chooses no scales at run time.")
        return scheme

    def _obstacle(self, program: Program, node: fx.Node, weight: Any) -> str:
        """Why the weight of ``node`` stays float; "" if it does not."""
        tensor = program.tensor(weight)
        if tensor is None:
            return "its weight is quantized already, or computed"
        if named(source_module(node), self.keep_float):
            return "kept float on request"
        if tensor.dtype is not torch.float32:
            return f"its weight is {tensor.dtype}"
        if tensor.numel() < self.min_values:
            return f"its weight has fewer than {self.min_values} values"
        return ""

    def _read_at_run_time(
        self, program: Program, node: fx.Node, weight: fx.Node, scheme: QuantizationScheme
    ) -> Iterator[tuple[fx.Node, fx.Node, IntegerType]]:
        """What ``node`` shall read in integers: (producer, node, type)."""
        op = next((op for op in scheme.at_run_time if node.target in op.operators), None)
        if self.activations == "float" or op is None or not (op.grouped or _ungrouped(program, node, weight)):
            return
        kinds = op.activation_types or [scheme.activation] * len(op.activations)
        for position, kind in zip(op.activations, kinds, strict=True):
            producer = node.args[position]
            if isinstance(producer, fx.Node) and producer.meta["val"].dtype is torch.float32:
                yield producer, node, kind


def _weights(program: Program, ops: Sequence[IntegerOp]) -> Iterator[tuple[fx.Node, IntegerOp, Any]]:
    """The nodes of ``ops``, each with its own and its weight, or one after the other the matrices of a list."""
    for node in program.calls():
        op = next((op for op in ops if node.target in op.operators), None)
        if op is None or op.weight is None:
            continue
        given: Any = node.args[op.weight]
        if isinstance(given, (list, tuple)):
            yield from ((node, op, each) for each in given if each.meta["val"].ndim > 1)
        else:
            yield node, op, given


def _ungrouped(program: Program, node: fx.Node, weight: fx.Node) -> bool:
    """Whether each filter of a convolution reads all channels."""
    filters, source = program.tensor(weight), node.args[0]
    return filters is not None and isinstance(source, fx.Node) and source.meta["val"].shape[1] == filters.shape[1]
