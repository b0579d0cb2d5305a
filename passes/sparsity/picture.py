"""A picture of a sparse Program: for each layer its mask, the magnitude that it keeps, and what it costs alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.compiler.errors import MissingDependency
from planish.compiler.program import Program
from planish.passes.sparsity.layers import Layer, find_layers
from planish.passes.sparsity.sensitivity import Sensitivity
from planish.passes.sparsity.walk import weight_of

ROW, MARGIN, NAME, BAR = 72, 12, 220, 200
"""Pixels: height of a row, space around, width of the column of names, width of a full bar."""
FULL_DB = 60.0
"""Signal-to-noise ratio of a full bar: a thousandth of the signal."""
MASK = (256, 60)
"""Width and height of a mask at most; larger ones are averaged, so that grey tells how dense a place is."""
INK, PALE = (40, 60, 110), (222, 226, 235)


def draw_masks(
    program: Program, path: str | Path, dense: Program | None = None, alone: Sequence[Sensitivity] = ()
) -> Path:
    """Write a PNG with a row for each layer that has zeros.

    Args:
        program: the sparse Program.
        path: the file to write, ``.png``.
        dense: what it was made of; with it bars tell which share of the sum of absolute weights is left.
        alone: what each layer costs when it alone is sparse; bars tell the signal-to-noise ratio of the outputs.

    Raises:
        MissingDependency: Pillow is not installed.
    """
    image_of, draw_on = _pillow()
    layers = [layer for layer in find_layers(program)[0] if bool((weight_of(program, layer) == 0).any())]
    before, costs = _magnitudes(dense), {each.layer: each.snr_db for each in alone}
    size = (NAME + MASK[0] + 2 * BAR + 5 * MARGIN, ROW * max(1, len(layers)) + 2 * MARGIN)
    image = image_of.new("RGB", size, "white")
    draw = draw_on.Draw(image)
    if not layers:
        draw.text((MARGIN, MARGIN), "no layer has zeros", fill=INK)
    for number, layer in enumerate(layers):
        weight, top = weight_of(program, layer), MARGIN + ROW * number
        zeros = float((weight == 0).double().mean())
        draw.text((MARGIN, top), f"{layer.name}\n{'x'.join(map(str, layer.shape))}\n{zeros:.1%} zeros", fill=INK)
        image.paste(image_of.fromarray(_grey(layer, weight).numpy()), (NAME + 2 * MARGIN, top))
        left = NAME + MASK[0] + 3 * MARGIN
        if layer.name in before:
            share = float(weight.abs().sum()) / before[layer.name]
            _bar(draw, left, top, share, f"{share:.1%} of the magnitude")
        if (snr := costs.get(layer.name)) is not None:
            _bar(draw, left + BAR + MARGIN, top, snr / FULL_DB, f"{snr:.1f} dB if it alone is sparse")
    beside = Path(path).with_name(f"{Path(path).name}.part")
    image.save(beside, format="PNG")
    return beside.replace(path)


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageDraw
    except ImportError as failure:
        raise MissingDependency("pillow", "plot") from failure
    return Image, ImageDraw


def _magnitudes(program: Program | None) -> dict[str, float]:
    if program is None:
        return {}
    weights = {layer.name: weight_of(program, layer) for layer in find_layers(program)[0]}
    return {name: float(weight.abs().sum()) for name, weight in weights.items()}


def _grey(layer: Layer, weight: Tensor) -> Tensor:
    """uint8 [height, width]: rows of the matrix downwards, white for zeros."""
    mask = (layer.matrix(weight) != 0).float().flatten(0, 1)[None, None]
    fitting = (min(mask.shape[2], MASK[1]), min(mask.shape[3], MASK[0]))
    share = F.adaptive_avg_pool2d(mask, fitting)[0, 0]
    return (255 * (1 - share)).round().to(torch.uint8)


def _bar(draw: Any, left: int, top: int, share: float, told: str) -> None:
    draw.rectangle((left, top, left + BAR, top + 16), fill=PALE)
    draw.rectangle((left, top, left + round(BAR * min(max(share, 0.0), 1.0)), top + 16), fill=INK)
    draw.text((left, top + 20), told, fill=INK)
