"""Other tools' ways from a float ONNX model to INT8, with the settings that their own documentation advises.

Every peer is a function ``(float_onnx, model, calibration, folder) -> path of the model file``, where
``calibration`` is batches, each a tuple of tensors in the order of the model's inputs, and ``folder`` an
existing folder of the peer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from benchmarks.models import Inputs

Sample = dict[str, np.ndarray[Any, Any]]
Peer = Callable[[Path, nn.Module, Sequence[Inputs], Path], Path]


def export_float(model: nn.Module, inputs: Inputs, names: tuple[str, ...], path: Path) -> Path:
    """The float ONNX model that all peers start from, with a dynamic batch, in one file."""
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model,
        inputs,
        path,
        dynamo=True,
        dynamic_shapes=tuple({0: batch} for _ in inputs),
        input_names=names,
        external_data=False,
        verbose=False,
    )
    return path


def input_names(float_onnx: Path) -> list[str]:
    import onnx

    return [entry.name for entry in onnx.load(float_onnx, load_external_data=False).graph.input]


def named_rows(float_onnx: Path, calibration: Sequence[Inputs]) -> list[Sample]:
    """Rows one by one: NNCF averages over the items given, and ONNX Runtime's memory grows with the batch."""
    names = input_names(float_onnx)
    return [
        {name: tensor[row : row + 1].numpy() for name, tensor in zip(names, batch, strict=True)}
        for batch in calibration
        for row in range(len(batch[0]))
    ]


class SampleReader:
    """ONNX Runtime's CalibrationDataReader."""

    def __init__(self, samples: list[Sample]):
        self.rest: Iterator[Sample] = iter(samples)

    def get_next(self) -> Sample | None:
        return next(self.rest, None)


def ort_static(calibrator: Literal["MinMax", "Percentile", "Entropy"]) -> Peer:
    """quantize_static, QDQ, U8 activations and S8 weights per channel, which it advises for x86 with VNNI.

    The histogram calibrators hold the activations of all rows in memory. `CalibStridedMinMax` would avoid it,
    but entropy loses much of its accuracy on merged histograms: that would not be a fair peer.

    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """

    def quantize(float_onnx: Path, model: nn.Module, calibration: Sequence[Inputs], folder: Path) -> Path:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared, quantized = folder / "prepared.onnx", folder / "model.onnx"
        quant_pre_process(float_onnx, prepared)
        quantize_static(
            prepared,
            quantized,
            SampleReader(named_rows(float_onnx, calibration)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod[calibrator],
        )
        return quantized

    return quantize


def ort_dynamic(float_onnx: Path, model: nn.Module, calibration: Sequence[Inputs], folder: Path) -> Path:
    """quantize_dynamic, which ONNX Runtime advises for transformers; it uses no calibration data."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantized = folder / "prepared.onnx", folder / "model.onnx"
    quant_pre_process(float_onnx, prepared)
    quantize_dynamic(prepared, quantized, per_channel=True, weight_type=QuantType.QInt8)
    return quantized


def nncf_onnx(float_onnx: Path, model: nn.Module, calibration: Sequence[Inputs], folder: Path) -> Path:
    import onnx

    quantized = nncf_quantized(onnx.load(float_onnx), named_rows(float_onnx, calibration))
    onnx.save(quantized, folder / "model.onnx")
    return folder / "model.onnx"


def nncf_openvino(float_onnx: Path, model: nn.Module, calibration: Sequence[Inputs], folder: Path) -> Path:
    import openvino

    converted = openvino.convert_model(float_onnx)
    quantized = nncf_quantized(converted, named_rows(float_onnx, calibration))
    openvino.save_model(quantized, folder / "model.xml")
    return folder / "model.xml"


def nncf_quantized(model: Any, samples: list[Sample]) -> Any:
    """nncf.quantize; token ids mean a transformer, for which NNCF has a scheme of its own.

    https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html
    """
    import nncf

    integers = all(np.issubdtype(array.dtype, np.integer) for array in samples[0].values())
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER if integers else None,
    )


@dataclass(frozen=True)
class Tool:
    """A peer and the runtime that executes what it makes."""

    quantize: Peer
    runtime: Literal["onnxruntime", "openvino"] = "onnxruntime"


TOOLS: dict[str, Tool] = {
    "ort-minmax": Tool(ort_static("MinMax")),
    "ort-percentile": Tool(ort_static("Percentile")),
    "ort-entropy": Tool(ort_static("Entropy")),
    "ort-dynamic": Tool(ort_dynamic),
    "nncf-onnx": Tool(nncf_onnx),
    "nncf-openvino": Tool(nncf_openvino, "openvino"),
}


def peer_file(name: str, float_onnx: Path, model: nn.Module, calibration: Sequence[Inputs], folder: Path) -> Path:
    """Let one tool quantize into ``folder/name``."""
    home = folder / name
    home.mkdir(parents=True)
    return TOOLS[name].quantize(float_onnx, model, calibration, home)
