"""Hand-written nets: recurrence, audio, volumes, segmentation, odd inputs and outputs, writes in place."""

from __future__ import annotations

from tests.backends.to_onnx.families import Family
from tests.backends.to_onnx.family_convolutions import convolutional
from tests.backends.to_onnx.family_odd import odd
from tests.backends.to_onnx.family_operators import operators
from tests.backends.to_onnx.family_recurrent import recurrent


def families() -> list[Family]:
    return [*recurrent(), *convolutional(), *odd(), *operators()]
