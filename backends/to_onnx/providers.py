"""Execution providers of ONNX Runtime: which one a device is served by, what it takes, how it is loaded there.

A profile chooses by the package that it names in ``runtime.versions``. A new provider is a row of this table, a new
device a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from planish.backends.to_onnx import qnn
from planish.backends.to_onnx.graph_rules import Rule
from planish.compiler.hardware import HardwareProfile
from planish.compiler.program import Program
from planish.compiler.scheme import QuantizationScheme

DOCS = "https://onnxruntime.ai/docs/execution-providers"


@dataclass(frozen=True)
class Provider:
    """One execution provider."""

    name: str
    package: str
    """What pip installs."""
    url: str
    options: Mapping[str, str] = field(default_factory=dict)
    module: str = ""
    """Of the package that brings the provider as a library of its own; "" where it is built into ONNX Runtime."""
    instead: bool = False
    """Whether its package takes the place of onnxruntime, which then must not be installed beside it."""
    rounds: bool = True
    """Whether it computes floats in less than float32."""
    rules: tuple[Rule, ...] = ()
    """What it takes, as its pages say."""
    scheme: Callable[[QuantizationScheme, HardwareProfile], QuantizationScheme] = lambda scheme, profile: scheme
    """Its own, made of the CPU's."""
    suit: Callable[[ir.Model, Program], ir.Model] = lambda model, program: model
    """The file in the forms that it takes, changed in place."""

    def told(self) -> dict[str, Any]:
        """What the script on the device needs to know."""
        fields = ("name", "package", "url", "module", "instead")
        return {**{field: getattr(self, field) for field in fields}, "options": dict(self.options)}


CPU = Provider("CPUExecutionProvider", "onnxruntime", f"{DOCS}/", rounds=False)
CUDA = Provider("CUDAExecutionProvider", "onnxruntime-gpu", f"{DOCS}/CUDA-ExecutionProvider.html", instead=True)
TENSORRT = Provider(
    "TensorrtExecutionProvider", "onnxruntime-gpu", f"{DOCS}/TensorRT-ExecutionProvider.html", instead=True,
    options={"trt_fp16_enable": "1", "trt_int8_enable": "1", "trt_engine_cache_enable": "1"},
)  # fmt: skip
QNN = Provider(
    "QNNExecutionProvider", "onnxruntime-qnn", qnn.DOCS, module="onnxruntime_qnn",
    options={"backend_type": "htp", "htp_performance_mode": "burst"},
    rules=qnn.RULES, scheme=qnn.suit_scheme, suit=qnn.suit,
)  # fmt: skip
OPENVINO = Provider(
    "OpenVINOExecutionProvider", "onnxruntime-openvino", f"{DOCS}/OpenVINO-ExecutionProvider.html", instead=True
)

BY_PACKAGE: Mapping[str, tuple[Provider, ...]] = {
    "onnxruntime-qnn": (QNN,),
    "onnxruntime-openvino": (OPENVINO,),
    "onnxruntime-gpu": (CUDA,),
    "tensorrt": (TENSORRT, CUDA),
}
"""The first of these that a profile names tells its providers, in the order in which ONNX Runtime asks them."""


def providers_of(profile: HardwareProfile) -> tuple[Provider, ...]:
    """Those that serve the device; what they do not take, the CPU runs."""
    named = profile.runtime.versions
    return next((found for package, found in BY_PACKAGE.items() if package in named), (CPU,))


def software_of(profile: HardwareProfile) -> list[str]:
    """The packages whose versions are asked for on the device."""
    return ["onnxruntime", *dict.fromkeys(each.package for each in providers_of(profile))]


def rules_for(profile: HardwareProfile) -> tuple[Rule, ...]:
    return tuple(rule for each in providers_of(profile) for rule in each.rules)
