"""What a Program has to fulfil for TFLite and for the device: it is lowered as it stands, and each node traced back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx

from planish.backends.to_tflite.converter import Conversion, convert
from planish.backends.to_tflite.devices import missing, peak_of_activations, subset_of
from planish.backends.to_tflite.dtypes import FILE_TYPES
from planish.compiler.complex_numbers import real_numbers
from planish.compiler.contracts import Check
from planish.compiler.errors import LoweringError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program
from planish.compiler.shapes import ensure_shapes

FORMAT = "https://ai.google.dev/edge/litert/conversion/overview"


def checks_for(profile: HardwareProfile) -> tuple[Check, ...]:
    lowered = _Lowered()
    checks = [
        FIXED_SHAPES,
        NO_COMPLEX,
        Check(
            "lowers-to-tflite",
            "Replace an operator that cannot be written for TFLite by others, or compile that part apart.",
            lowered.obstacles,
            source="https://ai.google.dev/edge/mlir/tfl_ops",
        ),
        NO_STATE,
    ]
    subset = subset_of(profile)
    if subset is not None:
        sentence = f"{subset.name[0].upper()}{subset.name[1:]} has no such operator: {subset.otherwise}."
        severity = "error" if subset.fatal else "warning"
        lacks = lowered.offenders(lambda made: (node for node, _ in missing(made.graph.operators, subset)))
        checks.append(Check("operators-of-the-device", sentence, lacks, severity, subset.source))  # type: ignore[arg-type]
    if any(unit.kind == "mcu" for unit in profile.units):
        room = profile.memory.size_mb.value * 2**20
        checks.append(_fits(lowered, room, profile))
    return tuple(checks)


def _fits(lowered: _Lowered, room: float, profile: HardwareProfile) -> Check:
    width = 1 if profile.quantization is not None else 4

    def too_large(made: Conversion) -> Iterator[fx.Node | None]:
        peak = peak_of_activations(made.graph, width)
        if peak.size_bytes > room:
            yield peak.node

    how = "in INT8" if width == 1 else "in float"
    return Check(
        "activations-fit",
        f"Make the input or the layers smaller: {how} activations take more than the device's {room / 1024:.0f} KiB.",
        lowered.offenders(too_large),
        source="https://github.com/tensorflow/tflite-micro/blob/main/tensorflow/lite/micro/docs/memory_management.md",
    )


class _Lowered:
    """The graph of the Program that was asked for last: all Checks look at the same one."""

    def __init__(self) -> None:
        self._program: Program | None = None
        self._made: Conversion | None = None
        self._failure: LoweringError | None = None

    def obstacles(self, program: Program) -> Iterator[fx.Node]:
        self._lower(program)
        if self._failure is not None and not program.dynamic_axes:
            yield _origin(self._failure.node, program)

    def offenders(self, of: Callable[[Conversion], Iterator[fx.Node | None]]) -> Callable[[Program], Iterator[fx.Node]]:
        def found(program: Program) -> Iterator[fx.Node]:
            self._lower(program)
            if self._made is not None:
                for node in dict.fromkeys(of(self._made)):
                    yield node or program.output

        return found

    def _lower(self, program: Program) -> None:
        if program is self._program:
            return
        self._program, self._made, self._failure = program, None, None
        try:
            self._made = convert(program)
        except LoweringError as failure:
            self._failure = failure


def _origin(name: str, program: Program) -> fx.Node:
    return next((node for node in program.graph.nodes if node.name == name), program.output)


def _dynamic(program: Program) -> Iterator[fx.Node]:
    yield from (node for node in program.placeholders if program.dynamic_axes.get(node.name))


def _complex(program: Program) -> Iterator[fx.Node]:
    real = real_numbers(program)
    ensure_shapes(real)
    for node in real.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype not in FILE_TYPES:
            yield node


def _writes_state(program: Program) -> Iterator[fx.Node]:
    for node in program.calls():
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable and node.args:
            written = node.args[0]
            while isinstance(written, fx.Node) and written.op == "call_function" and written.args:
                written = written.args[0]  # through views, to what is written
            if isinstance(written, fx.Node) and written.op == "get_attr":
                yield node


FIXED_SHAPES = Check(
    "fixed-shapes", "Trace with all sizes fixed: a TFLite file holds no dynamic ones.", _dynamic, source=FORMAT
)
NO_COMPLEX = Check(
    "no-complex-numbers",
    "Compute with real and imaginary parts apart: planish writes no complex tensors.",
    _complex,
    source="https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs",
)
NO_STATE = Check(
    "no-state",
    "The model writes into its own buffers: the artifact keeps no state from one call to the next.",
    _writes_state,
    severity="warning",
)
