"""Whether an artifact computes what the Program computes that it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from planish.compiler.errors import UserError, VerificationError
from planish.compiler.inputs import Inputs
from planish.compiler.memory import return_freed_memory
from planish.compiler.program import Program
from planish.compiler.report import Error

FLOAT_TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest error of a float artifact, relative to the largest value of the output, by its dtype; else 0."""
QUANTA = 255
"""Steps of an 8-bit output: the range of the output over this is its quantum."""

HALF_SNR_DB = 66.0
"""Of a value rounded once to float16: 20 log10(2^11)."""
HALF_SLACK_DB = 8.0
"""An artifact of families of models lies at most 5 dB below the Program rounded after each operator."""
OVERFLOW = 1e300
"""Stands for an infinite error: JSON has no infinity."""

Run = Callable[..., Any]


Outputs = list[list[Tensor]]
"""Output leaf -> its value for each batch."""


def errors(reference: Run, run: Run, batches: Sequence[Inputs]) -> list[Error]:
    """Distance of each output of ``run`` from the same output of ``reference``, over all ``batches``."""
    return compare(outputs_of(reference, batches), outputs_of(run, batches))


def compare(expected: Outputs, got: Outputs) -> list[Error]:
    if len(expected) != len(got):
        raise VerificationError(f"The artifact has {len(got)} outputs, its reference {len(expected)}.")
    return [_error(index, a, b) for index, (a, b) in enumerate(zip(expected, got, strict=True))]


def outputs_of(run: Run, batches: Sequence[Inputs]) -> Outputs:
    outputs: Outputs = []
    with torch.no_grad():
        for inputs in batches:
            leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(inputs.call(run)) if isinstance(leaf, Tensor)]
            outputs = outputs or [[] for _ in leaves]
            for values, leaf in zip(outputs, leaves, strict=True):
                values.append(leaf.detach())
    return_freed_memory()
    return outputs


def _error(index: int, expected: Sequence[Tensor], got: Sequence[Tensor]) -> Error:
    for a, b in zip(expected, got, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise VerificationError(
                f"Output {index} of the artifact is {b.dtype} {list(b.shape)}, "
                f"the Program's is {a.dtype} {list(a.shape)}."
            )
    dtype = str(expected[0].dtype).removeprefix("torch.")
    reference = torch.cat([a.flatten().double() for a in expected])
    result = torch.cat([b.flatten().double() for b in got])
    if not reference.numel():
        return Error(output=index, dtype=dtype, max_abs=0.0, max_relative=0.0, snr_db=None, within_a_quantum=1.0)
    same = (reference == result) | (reference.isnan() & result.isnan())
    difference = torch.where(same, 0.0, (reference - result).abs())
    finite = reference[reference.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    quantum = float(finite.max() - finite.min()) / QUANTA if finite.numel() else 0.0
    return Error(
        output=index,
        dtype=dtype,
        max_abs=_number(difference.max()),
        max_relative=_number(difference.max()) / largest if largest else _number(difference.max()),
        snr_db=snr_db(reference, result),
        within_a_quantum=float((difference <= quantum).double().mean()),
    )


def _number(value: Tensor) -> float:
    number = float(value)
    return number if math.isfinite(number) else OVERFLOW


def snr_db(reference: Tensor, result: Tensor) -> float | None:
    """10 log10(|reference|^2 / |reference - result|^2); None where they are equal to the last bit."""
    noise = float(((reference - result).double() ** 2).sum())
    signal = float((reference.double() ** 2).sum())
    if noise == 0:
        return None
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -300.0


def worst_snr(found: Sequence[Error]) -> float | None:
    """The lowest signal-to-noise ratio among the outputs; None if all are exact."""
    return min((error.snr_db for error in found if error.snr_db is not None), default=None)


def demand_float(found: Sequence[Error], what: str) -> None:
    """Raise VerificationError unless each output of ``what`` agrees to 1e-4 of its largest value (float32)."""
    for error in found:
        if not _agrees(error):
            raise VerificationError(
                f"Report this to planish: output {error.output} of {what} is off by {error.max_relative:.2g} relative "
                f"to its largest value; {FLOAT_TOLERANCE.get(error.dtype, 0):g} is allowed for {error.dtype}."
            )


def _agrees(error: Error) -> bool:
    return error.max_relative <= FLOAT_TOLERANCE.get(error.dtype, 0)


def agree(found: Sequence[Error]) -> bool:
    """Whether all outputs agree as float outputs of their dtype should."""
    return all(_agrees(error) for error in found)


def demand_quantized(found: Sequence[Error], quantization: Sequence[Error]) -> None:
    """Raise VerificationError unless the artifact's own rounding stays below the noise that quantization made.

    ``found``: artifact against the Q/DQ graph; ``quantization``: the Q/DQ graph against the float Program.
    Integer kernels round ties and biases otherwise than the float emulation of them, and each such step moves a
    value by one quantum. In a deep network that adds up to about the quantization noise itself (figures:
    docs/architecture.md); a wrong scale or a lost bias is far above it.
    """
    for error, own in zip(found, quantization, strict=True):
        if error.snr_db is None or _agrees(error):
            continue
        floor = min(own.snr_db if own.snr_db is not None else 40.0, 40.0) - 3.0
        if error.snr_db < floor:
            raise VerificationError(
                f"Report this to planish: output {error.output} of the INT8 artifact has {error.snr_db:.1f} dB "
                f"against the Q/DQ graph; the quantization's own noise allows {floor:.1f} dB."
            )


def demand_rounded(found: Sequence[Error], rounding: Sequence[Error]) -> None:
    """Raise VerificationError unless an artifact in float16 is about as near as float16 allows.

    ``found``: artifact against the float Program; ``rounding``: the Program with every result rounded to float16
    against itself in float. An artifact may round more often (an attention in single steps) and in other places.
    Raises UserError where the artifact leaves the range of float16.
    """
    for error, own in zip(found, rounding, strict=True):
        if error.snr_db is None or _agrees(error):
            continue
        if error.max_abs >= OVERFLOW > own.max_abs:
            raise UserError(
                f"Compile in float32: output {error.output} of the model leaves the range of float16, which ends "
                "at 65504."
            )
        floor = (own.snr_db if own.snr_db is not None else HALF_SNR_DB) - HALF_SLACK_DB
        if error.snr_db < floor:
            raise VerificationError(
                f"Report this to planish: output {error.output} of the float16 artifact has {error.snr_db:.1f} dB "
                f"against the Program; rounding to float16 allows {floor:.1f} dB."
            )


def is_quantized(program: Program) -> bool:
    return any("quantize" in str(node.target) for node in program.calls())
