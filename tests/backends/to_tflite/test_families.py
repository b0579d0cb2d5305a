"""Families of models through trace, lowering and LiteRT: the same that the ONNX backend is tested with."""

from __future__ import annotations

import re

import pytest

from tests.backends.to_onnx import family_layers, family_transformers
from tests.backends.to_onnx.families import Family
from tests.backends.to_onnx.family_models import timm_families

pytest.importorskip("ai_edge_litert")
from tests.backends.to_tflite.families import attempt

RECURRENT = re.compile(r"(LSTM|GRU|RNN)-(batch|time)-first-[12]")
PAIRS = frozenset({
    "LSTM-batch-first-1", "LSTM-time-first-2-both", "GRU-batch-first-2-both", "GRU-time-first-1",
    "RNN-batch-first-1-both", "RNN-time-first-2",
})  # fmt: skip
"""PyTorch decomposes recurrent layers. Of their 24 forms these have every pair of properties; the sweep has all."""
LAYERS = [family for family in family_layers.families() if not RECURRENT.match(family.name) or family.name in PAIRS]
TRANSFORMERS = family_transformers.families()
QUICK = ("Bert", "Llama", "T5")
TIMM = timm_families()[::16]
UNSUPPORTED = {
    "integers": "bits of whole numbers, which TFLite cannot combine",
}


def check(family: Family) -> None:
    outcome = attempt(family)
    if family.name in UNSUPPORTED:
        assert outcome.failure.startswith("LoweringError"), outcome
        pytest.xfail(UNSUPPORTED[family.name])
    assert outcome.good, outcome


@pytest.mark.parametrize("family", LAYERS, ids=[family.name for family in LAYERS])
def test_a_hand_written_net_lowers_and_agrees(family: Family) -> None:
    check(family)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, id=f.name, marks=() if f.name.removeprefix("transformers-") in QUICK else pytest.mark.slow)
        for f in TRANSFORMERS
    ],
)
def test_a_transformer_lowers_and_agrees(family: Family) -> None:
    pytest.importorskip("transformers")
    check(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", TIMM, ids=[family.name for family in TIMM])
def test_a_family_of_timm_lowers_and_agrees(family: Family) -> None:
    pytest.importorskip("timm")
    check(family)
