"""Families of models through trace, lowering and ONNX Runtime, at batches 1, 2 and 3."""

from __future__ import annotations

import pytest

from tests.backends.to_onnx import family_layers, family_transformers
from tests.backends.to_onnx.families import Family, attempt
from tests.backends.to_onnx.family_models import timm_families

LAYERS = family_layers.families()
TRANSFORMERS = family_transformers.families()
QUICK = ("Bert", "GPT2", "Llama", "T5", "CLIP")


def check(family: Family) -> None:
    outcome = attempt(family)
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
@pytest.mark.parametrize("family", timm_families()[::8], ids=[family.name for family in timm_families()[::8]])
def test_a_family_of_timm_lowers_and_agrees(family: Family) -> None:
    pytest.importorskip("timm")
    check(family)
