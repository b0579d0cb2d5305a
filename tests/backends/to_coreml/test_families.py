"""Families of models through trace, conversion and the reference evaluation, at batches 1, 2 and 3."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("coremltools")

from planish.compiler.verify import HALF_SLACK_DB
from tests.backends.to_coreml.families import TOLERANCE, attempt
from tests.backends.to_onnx import family_layers, family_transformers
from tests.backends.to_onnx.families import Family

RECURRENT = re.compile(r"(LSTM|GRU|RNN)-(batch|time)-first-[12]")
PAIRS = frozenset({
    "LSTM-batch-first-1", "LSTM-time-first-2-both", "GRU-batch-first-2-both", "GRU-time-first-1",
    "RNN-batch-first-1-both", "RNN-time-first-2",
})  # fmt: skip
"""Of the 24 forms of recurrent layers these have every pair of properties; the sweep in families.py has all."""
LAYERS = [family for family in family_layers.families() if not RECURRENT.match(family.name) or family.name in PAIRS]
EVERY_FORM = frozenset({
    "FNet", "Mixtral", "DebertaV2", "ResNet", "MPNet", "WavLM", "Bloom", "GPT2", "CLIP", "Falcon", "Swin", "ModernBert",
    "ConvNext", "Mamba", "WhisperEncoder", "Mistral", "Gemma", "T5",
})  # fmt: skip
"""A greedy cover: these have every operator of all 39 transformers, with the same number of arguments and the same
keywords. The sweep in families.py has all."""
TRANSFORMERS = [
    family for family in family_transformers.families() if family.name.removeprefix("transformers-") in EVERY_FORM
]
QUICK = ("audio-conv1d", "unet", "LSTM-with-state", "masks", "outputs", "transformer-encoder", "squeeze-excite")
TOLERANCES = {"half-precision": 2e-3}
"""Of models that compute in float16 themselves."""


def check(family: Family) -> None:
    outcome = attempt(family)
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
