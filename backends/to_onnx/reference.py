"""What an ONNX file says, whatever runs it in the end: ONNX Runtime computes the Q/DQ graph in float."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from planish.compiler.contracts import Runner


class Reference(Runner):
    """ONNX Runtime's session, all cores.

    Its integer kernels are left out: they saturate on processors without VNNI, and other devices' round otherwise.
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        feed = {name: tensor.contiguous().numpy(force=True) for name, tensor in zip(self.names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in self._session.run(None, feed)]
