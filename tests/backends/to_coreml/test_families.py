"""Families of models through trace, conversion and the reference evaluation, at batches 1, 2 and 3."""

from __future__ import annotations

import pytest

pytest.importorskip("coremltools")

from planish.compiler.verify import HALF_SLACK_DB
from tests.backends.to_coreml.families import TOLERANCE, attempt
from tests.backends.to_onnx import family_layers, family_transformers
from tests.backends.to_onnx.families import Family

LAYERS = family_layers.families()
TRANSFORMERS = family_transformers.families()
QUICK = ("audio-conv1d", "unet", "LSTM-with-state", "masks", "outputs", "transformer-encoder", "squeeze-excite")
UNSUPPORTED = {
    "integers": "bitwise operators of integers, which MIL lacks",
    "pools": "the indices of a max pool, which MIL lacks",
    "fourier": "Fourier transforms, which MIL lacks",
    "transformers-FNet": "Fourier transforms, which MIL lacks",
    "transformers-Mixtral": "histc, which nobody converts",
}
TOLERANCES = {"half-precision": 2e-3}
"""Of models that compute in float16 themselves."""


def check(family: Family) -> None:
    outcome = attempt(family)
    if family.name in UNSUPPORTED:
        assert outcome.failure, f"{family.name} converts by now: take it out of UNSUPPORTED"
        pytest.xfail(UNSUPPORTED[family.name])
    assert outcome.error is not None, outcome.failure
    assert outcome.error <= TOLERANCES.get(family.name, TOLERANCE)


def marked(families: list[Family]) -> list[object]:
    return [pytest.param(f, id=f.name, marks=() if f.name in QUICK else pytest.mark.slow) for f in families]


@pytest.mark.parametrize("family", marked(LAYERS))
def test_a_hand_written_net_converts_and_agrees(family: Family) -> None:
    check(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", marked(TRANSFORMERS))
def test_a_transformer_converts_and_agrees(family: Family) -> None:
    pytest.importorskip("transformers")
    check(family)


@pytest.mark.parametrize("name", ["unet", "audio-conv1d", "transformer-encoder"])
def test_in_float16_a_family_is_as_near_as_rounding_allows(name: str) -> None:
    outcome = attempt(next(family for family in LAYERS if family.name == name), "float16")
    assert outcome.snr is not None and outcome.rounding is not None, outcome.failure
    assert outcome.snr > outcome.rounding - HALF_SLACK_DB
