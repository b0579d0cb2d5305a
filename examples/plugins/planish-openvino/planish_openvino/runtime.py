"""OpenVINO's CPU plugin: compiled models, and the settings that every one of them has."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from planish.compiler.contracts import Runner
from planish.compiler.errors import MissingDependency, PlanishError

if TYPE_CHECKING:
    import openvino

Shapes = Sequence[Sequence[int]]

CONFIG: dict[str, Any] = {
    "PERFORMANCE_HINT": "LATENCY",
    # Left alone it computes in bf16 what is float, where the processor can: 2 to 3 digits instead of 7.
    "INFERENCE_PRECISION_HINT": "f32",
}


class MissingOpenVino(MissingDependency):
    """OpenVINO comes with this package, not with an extra of planish."""

    def __init__(self) -> None:
        PlanishError.__init__(self, "Install openvino with: pip install planish-openvino")
        self.library, self.extra = "openvino", ""


def is_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def require() -> None:
    if not is_installed():
        raise MissingOpenVino


def compiled(file: Path, shapes: Shapes | None = None) -> openvino.CompiledModel:
    """The model in ``file`` for the CPU; of fixed ``shapes``, one an input, where they are given.

    Raises RuntimeError if OpenVINO cannot read or compile it.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    if shapes is not None:
        model.reshape({index: [*shape] for index, shape in enumerate(shapes)})
    return core.compile_model(model, "CPU", CONFIG)


class CompiledRunner(Runner):
    """Tensors are handed over without a copy. All cores are used.

    The shapes of the first call get a compiled model of their own, which is faster than one that takes any
    shape. All other shapes share one of the latter kind, so there are never more than two.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._own_shapes: Shapes | None = None
        self._own: openvino.InferRequest | None = None
        self._any: openvino.InferRequest | None = None

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        arrays = [leaf.contiguous().numpy(force=True) for leaf in leaves if isinstance(leaf, Tensor)]
        request = self._request([array.shape for array in arrays])
        results = request.infer(dict(enumerate(arrays)), share_inputs=True)
        return [torch.from_numpy(results[index]) for index in range(len(results))]

    def _request(self, shapes: Shapes) -> openvino.InferRequest:
        if self._own is None:
            self._own_shapes = shapes
            self._own = compiled(self._file, shapes).create_infer_request()
        if shapes == self._own_shapes:
            return self._own
        if self._any is None:
            self._any = compiled(self._file).create_infer_request()
        return self._any
