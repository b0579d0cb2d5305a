"""Planned against actual: what the rules, and NVIDIA's builder where it is installed, make of a lowered model."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from planish.backends.to_onnx.graph_rules import Rule, in_float, origin
from planish.backends.to_tensorrt import rtx
from planish.backends.to_tensorrt.integers import meant_for_integers
from planish.backends.to_tensorrt.rules import rules_of
from planish.compiler.errors import LoweringError
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program, source_module
from planish.compiler.report import Decision, DeviceReport

Broken = list[tuple[Rule, ir.Node]]
UNEXPLAINED = "No rule of planish explains it"


def broken_rules(model: ir.Model, profile: HardwareProfile) -> Broken:
    return [(rule, node) for rule in rules_of(profile) for node in rule.offenders(model.graph)]


def demand_readable(model: ir.Model, program: Program, profile: HardwareProfile) -> None:
    """Raise LoweringError, with node and module, for the first thing that TensorRT's parser would reject."""
    for rule, node in broken_rules(model, profile):
        if rule.severity == "error":
            found = origin(node.name, program)
            raise LoweringError(
                rule.sentence.removesuffix("."), component="tensorrt", node=node.name or "",
                module=source_module(found) if found is not None else "",
            )  # fmt: skip


def float_layers(
    model: ir.Model, file: Path, program: Program, profile: HardwareProfile, own: DeviceReport | None
) -> tuple[list[Decision], list[str]]:
    """The layers that were meant for INT8 and run in float, and sentences for the Report.

    The device's own engine decides (``own``) where this machine is the device, else NVIDIA's builder for RTX where it
    is at hand (extra ``tensorrt``); the rules give the reason.
    """
    planned = [*meant_for_integers(model.graph)]
    if not planned:
        return [], []
    reasons = {node: rule.sentence for rule, node in broken_rules(model, profile)}
    if own is not None:
        label = f"TensorRT {own.device['tensorrt']} on this {own.device['device']}, as the engine's inspector lists it"
        return _compared(planned, _in_integers(own), label, program, reasons)
    if not rtx.is_installed():
        notes = ["Install planish[tensorrt] to ask NVIDIA's own builder which layers run in INT8."]
        return [in_float(node, program, reasons[node]) for node in planned if node in reasons], notes
    verdict = rtx.ask(file, rtx.nearest_architecture(profile))
    if verdict.refusal:
        return [], [f"{verdict.label} (no device test) refuses the model at {verdict.refused_node}: {verdict.refusal}"]
    return _compared(planned, verdict.in_integers, f"{verdict.label} (no device test)", program, reasons)


def _compared(
    planned: list[ir.Node], actual: frozenset[str], label: str, program: Program, reasons: dict[ir.Node, str]
) -> tuple[list[Decision], list[str]]:
    floats = [node for node in planned if node.name not in actual]
    note = f"{label}: {len(planned) - len(floats)} of {len(planned)} layers planned in INT8 run in INT8."
    return [in_float(node, program, f"{reasons.get(node, UNEXPLAINED)} ({label})") for node in floats], [note]


def _in_integers(own: DeviceReport) -> frozenset[str]:
    """Names of the ONNX nodes in layers that read INT8."""
    layers = [each["nodes"].split(", ") for each in own.layers if "Int8" in each["inputs"]]
    return frozenset(name for names in layers for name in names)
