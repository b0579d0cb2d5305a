"""From a Program to files that have passed every gate."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from torch import fx

from planish.backends.to_tflite.audit import demand_bias_scales, float_fallbacks, operators_in, summary
from planish.backends.to_tflite.backend import ENDS, FILE, TfliteBackend
from planish.backends.to_tflite.converter import convert
from planish.backends.to_tflite.devices import in_float, missing, peak_of_activations, runs_only_integers, subset_of
from planish.backends.to_tflite.ends import Ends, ends_of
from planish.backends.to_tflite.files import save
from planish.backends.to_tflite.gate import run_once, runtime_of
from planish.backends.to_tflite.graph import Form, Operator
from planish.compiler.contracts import Lowered
from planish.compiler.hardware import HardwareProfile
from planish.compiler.macs import macs
from planish.compiler.program import Program, op_name, source_module
from planish.compiler.report import Decision


def lower(program: Program, profile: HardwareProfile, folder: Path, options: TfliteBackend) -> Lowered:
    """Write the file, read it back, and run it in a process of its own."""
    integers = (options.ends or ("int8" if runs_only_integers(profile) else "float")) == "int8"
    form = Form(integers, options.channels_last, half=options.weights == "float16")
    made = convert(program, form)
    kept = save(made.graph, folder / FILE)
    ends = ends_of(made.graph, made.program)
    (folder / ENDS).write_text(ends.model_dump_json(indent=2) + "\n")
    operators = operators_in(folder / FILE)
    demand_bias_scales(operators)
    run_once(folder / FILE, ends, program.example_inputs.leaves(), options.interpreter)
    decisions = float_fallbacks(operators, [operator.node for operator in kept], made.program)
    arena = peak_of_activations(made.graph).size_bytes / 1024
    notes = [made.note, summary(operators), *_told_of(ends), f"Activations take at least {arena:.0f} KiB at once."]
    return Lowered(
        files=(FILE, ENDS),
        decisions=(*decisions, *_not_on_the_device(kept, made.program, profile)),
        notes=tuple(notes),
        versions={"ai-edge-litert": importlib.metadata.version("ai-edge-litert")} | _elsewhere(options),
        precision="float16" if form.half else "float32",
    )


def _elsewhere(options: TfliteBackend) -> dict[str, str]:
    """The runtime that was asked for, by its version."""
    name, _, version = (runtime_of(options.interpreter) or "").partition(" ")
    return {name: version} if name else {}


def _told_of(ends: Ends) -> list[str]:
    last = [end.name for end in (*ends.inputs, *ends.outputs) if end.order != sorted(end.order)]
    integers = [end.name for end in (*ends.inputs, *ends.outputs) if end.scale is not None]
    told = [f"Channels last in the file: {', '.join(last)}."] if last else []
    return told + ([f"INT8 in the file: {', '.join(integers)}."] if integers else [])


def _not_on_the_device(kept: list[Operator], program: Program, profile: HardwareProfile) -> list[Decision]:
    """What the device lacks, and its share of the multiply-accumulates."""
    subset = subset_of(profile)
    if subset is None:
        return []
    counts = {node: macs(node, lambda n: tuple(n.meta["val"].shape)) for node in program.calls() if _single(node)}
    whole = sum(counts.values()) or 1
    lacking = [*missing(kept, subset), *(in_float(kept) if runs_only_integers(profile) else ())]
    found = {node: kind for node, kind in lacking if node is not None}
    return [
        Decision(
            module=source_module(node), op=op_name(node), node=node.name, outcome="elsewhere",
            reason=f"{subset.name} has no {kind}: {subset.otherwise} ({counts.get(node, 0) / whole:.0%} of the MACs)",
        )
        for node, kind in found.items()
    ]  # fmt: skip


def _single(node: fx.Node) -> bool:
    return hasattr(node.meta.get("val"), "shape")
