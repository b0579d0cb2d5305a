"""A Program as the module that is trained: loss terms come out of its forward, which is what processes average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from planish.compiler.errors import UserError
from planish.compiler.program import MODE, Program, get_attribute
from planish.compiler.training_data import Batch
from planish.passes.training.memory_format import channels_last, suits_channels_last

aten = torch.ops.aten

Objective = Callable[[Any, Batch], Mapping[str, Tensor]]
"""(outputs of the Program, batch) -> scalar loss terms by name, weighted; their sum is minimized.

Outputs come in float32, whatever the precision. An objective that is an ``nn.Module`` is trained along. It draws
random numbers from torch alone.
"""
Penalty = Callable[[Program], Mapping[str, Tensor]]
"""Loss terms of the weights alone (a group lasso), from the Program in training."""


class TrainedModel(nn.Module):
    """Program, objective and penalty in one forward: ``batch`` -> loss terms."""

    def __init__(
        self, program: Program, objective: Objective, penalty: Penalty | None, bf16: bool, compiled: bool = False
    ) -> None:
        super().__init__()
        self.graph_module = program.graph_module
        self.companion = objective if isinstance(objective, nn.Module) else None
        self.program = program
        self._objective, self._penalty, self._bf16 = objective, penalty, bf16
        self._channels_last = suits_channels_last(program)
        self._compiled = compiled
        self._made: Callable[..., Any] | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        inputs = channels_last(batch.inputs) if self._channels_last else batch.inputs
        run = self._compilation() if self._compiled else self.graph_module
        if self._bf16:
            with torch.autocast(self._device_type(), torch.bfloat16):
                outputs = convert_to_fp32(inputs.call(run))
        else:
            outputs = inputs.call(run)
        terms = dict(self._objective(outputs, batch))
        if self._penalty is not None:
            terms.update(self._penalty(self.program))
        return terms

    def _compilation(self) -> Callable[..., Any]:
        """The Program in training by torch.compile: with the same tensors, and the same random numbers.

        Its graph is a copy: evaluation rewrites that of the Program, which would have it compiled anew each time.
        """
        if self._made is None:
            forward: Any = self.program.fork().graph_module.forward
            self._made = torch.compile(forward, dynamic=False, options={"fallback_random": True})
        return self._made

    def _device_type(self) -> str:
        return next(self.graph_module.parameters()).device.type


def demand_compiler(device: torch.device) -> None:
    """Raise UserError unless torch.compile finds what it builds kernels for ``device`` with."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import, and not needed without compiling
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    told = "Training(compiled=True), or leave that out"
    if device.type != "cpu" and not has_triton():
        raise UserError(f"Install triton for {told}.")
    if device.type == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as failure:
            raise UserError(f"Install a C++ compiler for {told}: torch finds none ({failure}).") from failure


def masked(masks: Mapping[str, Tensor]) -> Callable[[Program, float], None]:
    """An ``after_step`` that keeps zeros: each named tensor is multiplied by its mask, boolean and of its shape."""
    held = dict(masks)

    def multiply(program: Program, share: float) -> None:
        for name, mask in held.items():
            tensor = get_attribute(program.graph_module, name)
            held[name] = mask.to(tensor.device)
            tensor.mul_(held[name])

    return multiply


def move(program: Program, device: torch.device) -> None:
    """Put tensors, and the devices that nodes of the graph name, onto ``device``, in place."""
    program.graph_module.to(device)
    for node in program.graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs), lambda argument: device if isinstance(argument, torch.device) else argument
        )
    program.graph_module.recompile()


def set_training(program: Program, frozen_statistics: bool) -> None:
    """Training mode; batch norms evaluate if their statistics are frozen."""
    program.train()
    if frozen_statistics:
        for node in program.calls(aten.batch_norm.default):
            if (argument := node.meta.get(MODE)) is not None:
                argument.set(node, training=False)
        program.graph_module.recompile()


def computes_bf16(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 natively, as torch tells."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


@contextmanager
def evaluating(program: Program, frozen_statistics: bool) -> Iterator[None]:
    """Evaluation mode without gradients; back to training at the end."""
    program.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        set_training(program, frozen_statistics)


def runner(program: Program, device: torch.device) -> Callable[..., Any]:
    """``program`` as a metric calls it: tensors on the CPU in and out."""
    if device.type == "cpu":
        return program

    def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda leaf: leaf.to(device), (args, kwargs))
        return tree_map_only(Tensor, lambda leaf: leaf.cpu(), program(*args, **kwargs))

    return run


def measured(metric: Callable[[Callable[..., Any]], float], run: Callable[..., Any]) -> float:
    """What the user's metric says of ``run``. Raises UserError if it fails."""
    try:
        value = float(metric(run))
    except Exception as failure:  # the user's own function
        raise UserError(f"Mend the metric: it raised {type(failure).__name__}: {failure}") from failure
    if math.isnan(value):
        raise UserError("Mend the metric: it returned NaN.")
    return value
