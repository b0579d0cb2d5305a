"""An engine of TensorRT: built, run on the samples, measured. For TensorRT 8.5, 10 and 11.

Names of its Python API are used only where the version has them:
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
"""

from __future__ import annotations

import json
import math
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorrt as trt
from cuda import Cuda
from machine import Stop
from samples import FORMATS, converted, unpack

ENGINE = "model.engine"
MAJOR = int(trt.__version__.split(".")[0])


class Engine:
    """The engine in ``file``, ready to run."""

    def __init__(self, told: dict[str, Any], file: Path, seconds: float = 0.0) -> None:
        self._dtypes = {each["name"]: each["dtype"] for each in told["inputs"]}
        self._shapes = {each["name"]: tuple(each["shape"]) for each in told["inputs"]}
        self.file, self.seconds = file, seconds
        self._runtime = trt.Runtime(_LOGGER)
        self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            raise Stop(
                f"TensorRT {trt.__version__} does not read {file.name}: engines run only where, and with the version "
                f"that, they were built. {_LOGGER.last}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise Stop(f"there is too little memory to run the engine: close other programs. {_LOGGER.last}")
        self._cuda = Cuda()
        self._buffers: dict[str, tuple[int, int]] = {}
        """Name -> address and size."""

    @classmethod
    def build(cls, told: dict[str, Any], model: Path, file: Path, cache: Path, workspace_mb: int = 0) -> Engine:
        """Write the engine of the ONNX ``model`` to ``file``, and what was timed for it to ``cache``.

        Raises Stop with what TensorRT said.
        """
        begun = time.monotonic()
        builder = trt.Builder(_LOGGER)
        network = builder.create_network(_network_flags())
        parser = trt.OnnxParser(network, _LOGGER)
        if not parser.parse_from_file(str(model)):
            said = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            raise Stop(f"TensorRT {trt.__version__} rejects {model.name}: {said}. Compile it for this version.")
        config = _config(builder, told, workspace_mb)
        _use_cache(config, cache)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise Stop(
                f"TensorRT could not build the engine: {_LOGGER.last or 'it gives no reason'}. Where memory ran out: "
                "close other programs, add swap, or give --workspace-mb 256."
            )
        _write(file, bytes(plan))
        _write(cache, bytes(config.get_timing_cache().serialize()))
        return cls(told, file, time.monotonic() - begun)

    def run(self, inputs: dict[str, bytes]) -> dict[str, list[float]]:
        """The outputs for raw inputs of the shapes that build.json names."""
        found = self.outputs(inputs, self._shapes)
        return {name: unpack(data, dtype) for name, (data, dtype, _) in found.items()}

    def outputs(
        self, inputs: dict[str, bytes], shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, tuple[bytes, str, tuple[int, ...]]]:
        """Raw values, dtype and shape of each output, for raw inputs of these shapes."""
        self._load(inputs, shapes)
        self._enqueue()
        self._cuda.wait()
        results = {}
        for name in self._names(trt.TensorIOMode.OUTPUT):
            dtype, shape = _dtype(self._engine.get_tensor_dtype(name)), tuple(self._context.get_tensor_shape(name))
            data = self._cuda.to_host(self._buffers[name][0], math.prod(shape) * _bytes(dtype))
            results[name] = data, dtype, shape
        return results

    def timed(self, inputs: dict[str, bytes]) -> Callable[[], float]:
        """What runs the engine once: milliseconds on the GPU, without the copies of inputs and outputs."""
        self._load(inputs, self._shapes)
        start, end = self._cuda.event(), self._cuda.event()

        def one_call() -> float:
            self._cuda.record(start)
            self._enqueue()
            self._cuda.record(end)
            return self._cuda.elapsed_ms(start, end)

        return one_call

    def told(self) -> dict[str, Any]:
        inspector = self._engine.create_engine_inspector()
        listed = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)).get("Layers", [])
        return {
            "engine_bytes": self.file.stat().st_size,
            "build_seconds": round(self.seconds, 1),
            "built_by": "Python API",
            "layers": [_layer(each) for each in listed if isinstance(each, dict)],
        }

    def _names(self, mode: Any) -> list[str]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]

    def _load(self, inputs: dict[str, bytes], shapes: dict[str, tuple[int, ...]]) -> None:
        """Inputs into the GPU's memory, and room for the outputs."""
        for name in self._names(trt.TensorIOMode.INPUT):
            if name not in inputs:
                raise Stop(f"the engine wants an input {name}: was it built from another model?")
            dtype = _dtype(self._engine.get_tensor_dtype(name))
            data = converted(inputs[name], self._dtypes[name], dtype)
            if not self._context.set_input_shape(name, shapes[name]):
                raise Stop(f"the engine takes no input {name} of shape {shapes[name]}: see build.json.")
            self._room(name, len(data))
            self._cuda.to_device(self._buffers[name][0], data)
        for name in self._names(trt.TensorIOMode.OUTPUT):
            dtype = _dtype(self._engine.get_tensor_dtype(name))
            self._room(name, math.prod(self._context.get_tensor_shape(name)) * _bytes(dtype))

    def _room(self, name: str, size: int) -> None:
        address, had = self._buffers.get(name, (0, -1))
        if had >= size:
            return
        if address:
            self._cuda.free(address)
        self._buffers[name] = self._cuda.allocate(size), size
        self._context.set_tensor_address(name, self._buffers[name][0])

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream.value):
            raise Stop(f"the engine failed to run: {_LOGGER.last}")


# ---------------------------------------------------------------------- building


def _network_flags() -> int:
    """Explicit batch is all there is from 10 on; strong typing is all there is from 11 on."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) if MAJOR < 10 else 0


def _config(builder: Any, told: dict[str, Any], workspace_mb: int) -> Any:
    config = builder.create_builder_config()
    if workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    if MAJOR < 11:  # 11 computes in the types of the graph
        if told["precision"]["fp16"]:
            config.set_flag(trt.BuilderFlag.FP16)
        if told["precision"]["int8"]:
            config.set_flag(trt.BuilderFlag.INT8)
    if told["precision"]["sparse"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if told["precision"]["dla"]:
        if not builder.num_DLA_cores:
            raise Stop("this device has no DLA: build the model for its GPU.")
        config.default_device_type, config.DLA_core = trt.DeviceType.DLA, 0
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    dynamic = [each for each in told["inputs"] if each["least"] != each["most"]]
    if dynamic:
        profile = builder.create_optimization_profile()
        for each in dynamic:
            profile.set_shape(each["name"], each["least"], each["best"], each["most"])
        config.add_optimization_profile(profile)
    return config


def _use_cache(config: Any, file: Path) -> None:
    """Kernels that were timed before are not timed again; a cache that does not fit starts empty."""
    saved = file.read_bytes() if file.exists() else b""
    if not config.set_timing_cache(config.create_timing_cache(saved), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def cache_name(facts: dict[str, str]) -> str:
    """Of the timing cache for this GPU and this version."""
    return f"timing-{_plain(facts.get('device', 'gpu'))}-{trt.__version__}.cache"


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(data)
    beside.replace(path)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _dtype(dtype: Any) -> str:
    """TensorRT's name of a dtype (DataType.FLOAT) as ONNX has it."""
    names = {"FLOAT": "float32", "HALF": "float16"}
    name = str(dtype).split(".")[-1]
    known = names.get(name, name.lower())
    if known not in FORMATS:
        raise Stop(f"inputs and outputs of type {known} cannot be checked here.")
    return known


def _bytes(dtype: str) -> int:
    return struct.calcsize(FORMATS[dtype])


def _layer(told: dict[str, Any]) -> dict[str, str]:
    """Name, types of the inputs and nodes of the ONNX file, of one layer of the inspector's list."""
    kinds = [each.get("Format/Datatype") or each.get("Datatype", "") for each in told.get("Inputs", [])]
    name = str(told.get("Name", ""))
    nodes = re.findall(r"ONNX Layer: ([^\]]+)\]", str(told.get("Metadata", ""))) or name.split(
        " + "
    )  # 8.5 has names alone
    return {"name": name, "inputs": ", ".join(str(kind) for kind in kinds), "nodes": ", ".join(nodes)}


class _Logger(trt.ILogger):  # type: ignore[misc]
    """Prints warnings and keeps the last error: what the build failed of."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def log(self, severity: Any, text: str) -> None:
        name = str(severity).split(".")[-1]
        if name in ("ERROR", "INTERNAL_ERROR"):
            self.last = text
        if name in ("ERROR", "INTERNAL_ERROR", "WARNING"):
            print(f"[TensorRT {name.lower()}] {text}")


_LOGGER = _Logger()
