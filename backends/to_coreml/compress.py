"""Smaller weights for the same computation: coremltools.optimize on the converted model.

What each form needs is declared here, not discovered:
https://apple.github.io/coremltools/docs-guides/source/opt-whats-new.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planish.backends.to_coreml.convert import quiet
from planish.backends.to_coreml.targets import ios_version
from planish.compiler.errors import UserError, closest
from planish.compiler.hardware import HardwareProfile

SPARSE_SHARE = 0.3
"""Zeros from which on a mask and the rest take less than the whole: 16 bits a value, one for the mask."""


@dataclass(frozen=True)
class Form:
    """A way to store weights, and the iOS (or its siblings) that reads it."""

    since: int
    apply: Callable[[Any], Any]


def _linear(**options: Any) -> Callable[[Any], Any]:
    def apply(model: Any) -> Any:
        import coremltools.optimize.coreml as optimize

        rule = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=THRESHOLD, **options)
        return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=rule))

    return apply


def _palette(bits: int) -> Callable[[Any], Any]:
    def apply(model: Any) -> Any:
        import coremltools.optimize.coreml as optimize

        rule = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=THRESHOLD)
        return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=rule))

    return apply


THRESHOLD = 2048
"""Values from which on a weight is compressed: coremltools' own default."""
FORMS = {
    "int8": Form(16, _linear(dtype="int8", granularity="per_channel")),
    "int4": Form(18, _linear(dtype="int4", granularity="per_block", block_size=32)),
    "palette-8": Form(16, _palette(8)),
    "palette-6": Form(16, _palette(6)),
    "palette-4": Form(16, _palette(4)),
    "palette-2": Form(16, _palette(2)),
}
SPARSE_SINCE, JOINT_SINCE = 16, 18


def demand(weights: str, profile: HardwareProfile) -> None:
    """Raise UserError unless ``weights`` is a form, and the system of ``profile`` reads it."""
    if weights not in FORMS:
        raise UserError(f"Name a known form of weights: there is no {weights!r}{closest(weights, FORMS)}")
    since, own = FORMS[weights].since, ios_version(profile)
    if own < since:
        raise UserError(
            f"Raise the oldest system of {profile.name} to iOS {since} (macOS {since - 3}): "
            f"weights={weights!r} needs it, and the profile allows iOS {own}."
        )


def compressed(model: Any, weights: str) -> Any:
    with quiet():
        return FORMS[weights].apply(model)


def sparse(model: Any, profile: HardwareProfile, quantized: bool) -> Any | None:
    """Weights with many zeros as a mask and the rest; with INT8 jointly. None where the system cannot read it."""
    if ios_version(profile) < (JOINT_SINCE if quantized else SPARSE_SINCE):
        return None
    import coremltools.optimize.coreml as optimize

    rule = optimize.OpThresholdPrunerConfig(threshold=0.0, minimum_sparsity_percentile=SPARSE_SHARE, weight_threshold=0)
    options = {"joint_compression": True} if quantized else {}
    with quiet():
        return optimize.prune_weights(model, optimize.OptimizationConfig(global_config=rule), **options)
