"""Stands in for TensorRT's Python module: its names are those of the version in FAKE_TENSORRT, and no others.

An "engine" is the ONNX file, computed by ONNX Runtime; what the real one refuses, this refuses as well.
FAKE_MISHAP lets it fail: ``parse``, ``memory``, ``elsewhere``, ``context``, ``run``, ``wrong outputs``, ``cache``,
``float layers`` (its inspector lists no INT8). FAKE_SLOW: ``int8`` or ``float`` engines take 4 ms longer.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

__version__ = os.environ["FAKE_TENSORRT"]
MAJOR = int(__version__.split(".")[0])
MISHAP = os.environ.get("FAKE_MISHAP", "")
SLOW = os.environ.get("FAKE_SLOW", "")
_KNOWN = json.loads((Path(__file__).parents[3] / "api.json").read_text())
_API: dict[str, list[str]] = _KNOWN[os.environ.get("FAKE_API", __version__)]


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT64 = "int64"
    INT32 = "int32"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class LayerInformationFormat(enum.Enum):
    JSON = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


def _names(owner: str, *names: str) -> Any:
    """An enumeration of those among ``names`` that the version has."""
    return enum.IntEnum(owner, [name for name in names if name in _API[owner]], start=0)


BuilderFlag = _names("BuilderFlag", "FP16", "INT8", "TF32", "SPARSE_WEIGHTS", "GPU_FALLBACK")
DeviceType = _names("DeviceType", "GPU", "DLA")
NetworkDefinitionCreationFlag = _names("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED")


class _Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    def __init__(self) -> None: ...

    def log(self, severity: Any, text: str) -> None:
        raise NotImplementedError


class IHostMemory(bytes):
    """What build_serialized_network returns: readable as bytes."""


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._model: onnx.ModelProto | None = None


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors = network, []  # type: ignore[var-annotated]

    def parse_from_file(self, path: str) -> bool:
        import onnx  # not at the top: most processes ask for the version alone

        model = onnx.load(path)
        if MAJOR < 10 and not self._network._flags & 1:
            self._errors.append("The network must be created with the kEXPLICIT_BATCH flag")
        if MAJOR < 10 and any(
            each.data_type == onnx.TensorProto.INT8 and each.dims for each in model.graph.initializer
        ):
            values = [onnx.numpy_helper.to_array(each) for each in model.graph.initializer]
            if any(each.dtype == np.int8 and each.any() for each in values):
                self._errors.append("invalid weights type of Int8")
        if MISHAP == "parse":
            self._errors.append("No importer registered for op: Odd")
        self._network._model = model
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._errors[index])


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(b"timed on " + __version__.encode())


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[list[int], list[int], list[int]]] = {}

    def set_shape(self, name: str, min: list[int], opt: list[int], max: list[int]) -> None:
        self._shapes[name] = (min, opt, max)


class IBuilderConfig:
    profiling_verbosity = None
    default_device_type = None
    DLA_core = -1

    def __init__(self) -> None:
        self._flags: set[str] = set()
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return 0

    def create_timing_cache(self, data: bytes) -> ITimingCache:
        return ITimingCache(data)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return not (MISHAP == "cache" and cache._data)

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.num_DLA_cores = int(os.environ.get("FAKE_DLA_CORES", "0"))

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        model = network._model
        assert model is not None
        problem = _obstacle(model, config)
        if problem:
            self._logger.log(_Severity.ERROR, problem)
            return None
        shapes = config._profiles[0]._shapes if config._profiles else {}
        head = json.dumps({"version": __version__, "shapes": shapes, "flags": sorted(config._flags)})
        return IHostMemory(head.encode() + b"\n" + model.SerializeToString())


def _obstacle(model: onnx.ModelProto, config: IBuilderConfig) -> str:
    if MISHAP == "memory":
        return "Requested amount of GPU memory (536870912 bytes) could not be allocated."
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    if quantized and MAJOR < 11 and "INT8" not in config._flags:
        return "Network has QuantizeLinear nodes, but the builder flag INT8 is not set."
    dynamic = any(size.dim_param for each in model.graph.input for size in each.type.tensor_type.shape.dim)
    if dynamic and not config._profiles:
        return "Network has dynamic or shape inputs, but no optimization profile has been defined."
    return ""


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
        head = json.loads(data.partition(b"\n")[0])
        if MISHAP == "elsewhere" or head["version"] != __version__:
            self._logger.log(_Severity.ERROR, "The engine plan file is not compatible with this version of TensorRT.")
            return None
        return ICudaEngine(head, data.partition(b"\n")[2])


class EngineInspector:
    """Lists the layers that multiply: in INT8 where both operands are dequantized right in front of them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        return json.dumps({"Layers": [self._layer(node) for node in self._model.graph.node if node.op_type in _LAYERS]})

    def _layer(self, node: onnx.NodeProto) -> dict[str, Any]:
        makers = {output: node.op_type for node in self._model.graph.node for output in node.output}
        integers = all(makers.get(name) == "DequantizeLinear" for name in node.input[:2]) and MISHAP != "float layers"
        kind = "Thirty-two wide channel vectorized row major Int8" if integers else "Row major linear FP32"
        if MAJOR < 10:
            return {"Name": f"{node.name} + relu", "Inputs": [{"Format/Datatype": kind}]}
        return {
            "Name": f"fused {node.name}", "Metadata": f"[ONNX Layer: {node.name}]\x1e[ONNX Layer: relu]",
            "Inputs": [{"Format/Datatype": kind}],
        }  # fmt: skip


_LAYERS = ("Conv", "Gemm", "MatMul")


class ICudaEngine:
    def __init__(self, head: dict[str, Any], model: bytes) -> None:
        self._shapes = head["shapes"]
        import onnx
        import onnxruntime

        self._model = onnx.load_from_string(model)
        quantized = any(node.op_type == "QuantizeLinear" for node in self._model.graph.node)
        self._slow = ("int8" if quantized else "float") == SLOW
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        self._outputs = {each.name: each for each in self._session.get_outputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        told = {**self._inputs, **self._outputs}[name].type
        kind = {"tensor(float)": DataType.FLOAT, "tensor(int64)": DataType.INT64, "tensor(bool)": DataType.BOOL}[told]
        return DataType.INT32 if kind is DataType.INT64 and MAJOR < 9 else kind

    def create_execution_context(self) -> IExecutionContext | None:
        return None if MISHAP == "context" else IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._model)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._set: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._results: dict[str, Any] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._set[name] = tuple(shape)
        least, _, most = self._engine._shapes.get(name, (shape, shape, shape))
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        zeros = {key: np.zeros(shape, self._own(key)) for key, shape in self._set.items()}
        results = dict(zip(self._engine._outputs, self._engine._session.run(None, zeros), strict=True))
        return tuple(results[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def _own(self, name: str) -> Any:
        """The dtype that the ONNX file has."""
        return np.int64 if "int64" in self._engine._inputs[name].type else np.float32

    def execute_async_v3(self, stream_handle: int) -> bool:
        if MISHAP == "run":
            return False
        if self._engine._slow:
            time.sleep(0.004)
        feed = {}
        for name, shape in self._set.items():
            dtype = np.dtype(self._engine.get_tensor_dtype(name).value)
            raw = ctypes.string_at(self._addresses[name], int(np.prod(shape)) * dtype.itemsize)
            feed[name] = np.frombuffer(raw, dtype).reshape(shape).astype(self._own(name))
        for name, array in zip(self._engine._outputs, self._engine._session.run(None, feed), strict=True):
            values = array + 1 if MISHAP == "wrong outputs" else array
            raw = values.astype(self._engine.get_tensor_dtype(name).value).tobytes()
            ctypes.memmove(self._addresses[name], raw, len(raw))
        return True


for _owner in [*globals().values()]:
    if isinstance(_owner, type) and _owner.__module__ == __name__ and not issubclass(_owner, enum.Enum | bytes):
        for _name in [name for name in vars(_owner) if not name.startswith("_")]:
            if _name not in _API[_owner.__name__]:
                delattr(_owner, _name)
