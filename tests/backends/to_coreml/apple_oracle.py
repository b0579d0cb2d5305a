"""coremltools' own NumPy evaluation of MIL operations on constants: an oracle that shares no line with planish's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planish.backends.to_coreml.convert import quiet
from planish.backends.to_coreml.mil_operations import OPERATIONS, VARIADIC


def _filled(operation: Any) -> dict[str, Any]:
    """The parameters that the operation ends up with, defaults included: a package stores them all."""
    filled = {}
    for name, var in operation.inputs.items():
        if isinstance(var, (tuple, list)):
            filled[name] = [each.val for each in var]
        elif var is not None:
            filled[name] = var.val
    return filled


def assert_agrees(kind: str, tolerance: float = 2e-6, **inputs: Any) -> None:
    """planish's function of ``kind`` against coremltools' value, on the same parameters."""
    given = dict(inputs)
    wanted = _called(kind, given)
    results = OPERATIONS[kind](**{name: _tensor(name, value) for name, value in given.items()})
    listed = results if isinstance(results, (tuple, list)) else [results]
    for a, b in zip(wanted, listed, strict=True):
        expected = torch.as_tensor(np.ascontiguousarray(a)).reshape(a.shape)
        assert expected.shape == b.shape
        assert torch.allclose(expected.double(), b.double(), tolerance, tolerance, equal_nan=True), (expected, b)


def _called(kind: str, given: dict[str, Any]) -> list[NDArray[Any]]:
    with quiet():
        import coremltools as ct
        from coremltools.converters.mil.mil import Builder as mb

        found: list[Any] = []

        @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=ct.target.iOS18)  # type: ignore[untyped-decorator]
        def program(x: Any) -> Any:
            made = getattr(mb, kind)(**given)
            listed = made if isinstance(made, (tuple, list)) else [made]
            found.extend(var.val for var in listed)
            given.update(_filled(listed[0].op))
            return x

    assert all(value is not None for value in found), f"coremltools infers no value of {kind}"
    return [np.asarray(value) for value in found]


def _tensor(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if name in VARIADIC:
        return [_tensor("", each) for each in value]
    return torch.as_tensor(np.array(value)) if not isinstance(value, Tensor) else value
