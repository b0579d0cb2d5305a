"""ONNX files run by ONNX Runtime on the CPU: as it runs them, or as they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from planish.compiler.contracts import Runner


class Session(Runner):
    """ONNX Runtime's session, all cores; tensors are handed over without a copy. ``entries``: of its configuration."""

    def __init__(self, file: Path, entries: Mapping[str, str] | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        for name, value in (entries or {}).items():
            options.add_session_config_entry(name, value)
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        feed = {name: tensor.contiguous().numpy(force=True) for name, tensor in zip(self.names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in self._session.run(None, feed)]


class Reference(Session):
    """What a file says, whatever runs it in the end: the Q/DQ graph is computed in float.

    Integer kernels are left out: they saturate on processors without VNNI, and other devices' round otherwise.
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file, {"session.disable_quant_qdq": "1"})
