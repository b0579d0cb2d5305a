"""NVIDIA's own parser and builder, asked without a GPU: TensorRT for RTX builds ahead of time for other machines.

It is not the TensorRT of a Jetson. What it answers is labelled "TensorRT-RTX, nearest architecture", and is no test
of a device: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.compiler.hardware import HardwareProfile

_NEAREST = {"Volta": "SM80", "Turing": "SM80", "Ampere": "SM86", "Ada": "SM89", "Hopper": "SM89", "Blackwell": "SM120"}
"""For SM75 it builds too, but no matrix product of floats ("FP32 GEMM is not supported")."""
_INTEGER_KERNELS = frozenset({"correlation", "gemm"})
"""Kinds of layers that multiply; with INT8 operands they do so in INT8. A ``runtime_fusion`` dequantizes first."""


@dataclass(frozen=True)
class Layer:
    """One layer of the engine, as the builder lists it."""

    kind: str
    dtypes: tuple[str, ...]
    """Of inputs and constants, in NVIDIA's words: Int8, Half, Float."""
    nodes: tuple[str, ...]
    """Names of the ONNX nodes that went into it."""

    @property
    def multiplies_integers(self) -> bool:
        return self.kind in _INTEGER_KERNELS and "Int8" in self.dtypes


@dataclass(frozen=True)
class Verdict:
    """What TensorRT-RTX made of a file: layers, or the reason why it refused it."""

    version: str
    architecture: str
    layers: tuple[Layer, ...] = ()
    refusal: str = ""
    refused_node: str = ""

    @property
    def label(self) -> str:
        return f"TensorRT-RTX {self.version}, nearest architecture {self.architecture}"

    @property
    def in_integers(self) -> frozenset[str]:
        """Names of the ONNX nodes that run in INT8."""
        return frozenset(name for layer in self.layers if layer.multiplies_integers for name in layer.nodes)


def is_installed() -> bool:
    return importlib.util.find_spec("tensorrt_rtx") is not None


def nearest_architecture(profile: HardwareProfile) -> str:
    """The architecture that TensorRT-RTX builds for and that comes next to the GPU of ``profile``."""
    names = [unit.name for unit in profile.units if unit.kind == "gpu"]
    return next((sm for family, sm in _NEAREST.items() if any(family in name for name in names)), "SM86")


def ask(file: Path, architecture: str) -> Verdict:
    """Parse ``file`` and build it for ``architecture``; nothing is run."""
    import tensorrt_rtx as trt

    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    version = str(trt.__version__)
    if not parser.parse_from_file(str(file)):
        error = parser.get_error(parser.num_errors - 1)
        return Verdict(version, architecture, refusal=error.desc(), refused_node=error.node_name())
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, architecture), 0)
    _allow_shapes(builder, network, config)
    if builder.build_serialized_network(network, config) is None:
        errors = [text for severity, text in log.rows if "ERROR" in severity]
        return Verdict(version, architecture, refusal=errors[0] if errors else "it says no reason")
    told = next(text for _, text in log.rows if text.startswith("Layers:"))
    return Verdict(version, architecture, tuple(_layers(told)))


def _allow_shapes(builder: Any, network: Any, config: Any) -> None:
    """One optimization profile for the dynamic sizes, 1 to 8: which layer runs in INT8 does not hang on them."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if not any(-1 in tensor.shape for tensor in inputs):
        return
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        least = [size if size > 0 else 1 for size in tensor.shape]
        most = [size if size > 0 else 8 for size in tensor.shape]
        profile.set_shape(tensor.name, least, most, most)
    config.add_optimization_profile(profile)


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.rows.append((str(severity), text))

    return Log()


def _layers(told: str) -> Iterator[Layer]:
    """The rows of the builder's list, one a layer: Name, LayerType, Inputs, Constants, Outputs, Metadata."""
    for row in told.splitlines():
        kind = re.search(r"LayerType: (\w+)", row)
        if kind is not None:
            read = row.split("Outputs: [")[0]
            yield Layer(
                kind[1], tuple(re.findall(r"Datatype: (\w+)", read)), tuple(re.findall(r"ONNX Layer: ([^\]]+)\]", row))
            )
