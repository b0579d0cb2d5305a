"""Runs a package: by the reference evaluator, or by Apple's runtime where there is one and no image is wanted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from planish.backends.to_coreml.evaluator import Evaluator
from planish.backends.to_coreml.interface import Image
from planish.backends.to_coreml.mil import Feature, Package, read_package
from planish.compiler.contracts import Runner
from planish.compiler.errors import UserError

ON_APPLE = sys.platform == "darwin"


class PackageRunner(Runner):
    """Leaves of the Program in and out. ``runtime`` is what lowering left in the manifest."""

    def __init__(self, path: Path, runtime: Mapping[str, Any]) -> None:
        self._inputs: list[str] = runtime["inputs"]
        self._outputs = [(name, getattr(torch, dtype)) for name, dtype in runtime["outputs"]]
        self._images = {name: Image.from_json(image) for name, image in runtime["images"].items()}
        self._labels, self._one_row = runtime["labels"], runtime["one_row"]
        self._run: Callable[[Mapping[str, Tensor]], dict[str, Any]]
        if ON_APPLE and not self._images:  # whose whole pixels from 0 to 255 are not all that a tensor may hold
            self._package: Package = read_package(path)
            self._run = _apple(path)
        else:
            evaluator = Evaluator(path)
            self._package, self._run = evaluator.package, evaluator

    def __call__(self, leaves: Sequence[Any]) -> list[Any]:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not self._one_row:
            return self._call(tensors)
        rows = [self._call([*row]) for row in zip(*(tensor.split(1) for tensor in tensors), strict=True)]
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]

    def _call(self, tensors: Sequence[Tensor]) -> list[Any]:
        features = {each.name: each for each in self._package.input_features}
        given = {}
        for name, tensor in zip(self._inputs, tensors, strict=True):
            _demand_bounds(tensor, features[name])
            values = self._images[name].pixels(tensor) if name in self._images else tensor
            given[name] = _narrow(name, values, self._package.inputs[name].dtype)
        results = self._run(given)
        if self._labels:
            return [self._scores(results)]
        return [results[name].to(dtype) for name, dtype in self._outputs]

    def _scores(self, results: Mapping[str, Any]) -> Tensor:
        """[1, classes] from what a classifier tells: the label, and a score by label."""
        (scores,) = (value for value in results.values() if isinstance(value, dict))
        return torch.tensor([[scores[label] for label in self._labels]], dtype=self._outputs[0][1])


def _demand_bounds(tensor: Tensor, feature: Feature) -> None:
    for axis, (size, (low, high)) in enumerate(zip(tensor.shape, feature.bounds, strict=False)):
        if not low <= size <= high:
            raise UserError(
                f"Give input {feature.name!r} {low} to {high} rows on axis {axis}, not {size}; "
                "CoreMLBackend(largest_batch=…) moves the bound."
            )


def _narrow(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the type of the package: int64 as int32 and so on. Raises UserError for what does not fit."""
    narrow = tensor.to(dtype)
    if not dtype.is_floating_point and not torch.equal(narrow.to(tensor.dtype), tensor):
        raise UserError(f"Give input {name!r} whole numbers of 32 bits: Core ML has no others.")
    return narrow


def _apple(path: Path) -> Callable[[Mapping[str, Tensor]], dict[str, Any]]:
    """Apple's runtime. It has never run in planish's own tests, which know no Mac."""
    import coremltools as ct

    model = ct.models.MLModel(str(path))

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        given = {name: tensor.numpy(force=True) for name, tensor in inputs.items()}
        return {name: _taken(value) for name, value in model.predict(given).items()}

    return run


def _taken(value: Any) -> Any:
    """A classifier gives a label, and a dictionary of scores."""
    return value if isinstance(value, (str, dict)) else torch.from_numpy(np.asarray(value))
